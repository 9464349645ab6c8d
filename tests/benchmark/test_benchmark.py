"""The benchmark measures what it says, on small sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neat_bench.benchmark.layers import Contestant, Shape, contestants, measure
from neat_bench.benchmark.report import file_name, to_markdown

ROOT = Path(__file__).resolve().parents[2]
TINY = Shape("tiny", 96, 160, 64, 4)


def test_every_contestant_takes_the_same_kind_of_step_and_is_compared_with_lora():
    found = measure(TINY, "cpu", torch.float32, rounds=2, round_seconds=0.002)
    assert list(found["results"]) == list(contestants(4))
    lora = found["results"]["lora"]
    assert (lora["time"], lora["peak_memory"], lora["kept_for_backward"]) == (1.0, 1.0, 1.0)
    for figures in found["results"].values():
        assert figures["time_low"] <= figures["time"] <= figures["time_high"]


def test_what_is_kept_for_backward_is_counted_without_weights_and_input():
    """LoRA keeps x A^T alone; NEAT its Z, twice at most, beside that; PEANuT an out x in update."""
    size = 4  # bytes
    linear = torch.nn.Linear(TINY.inputs, TINY.outputs)
    kept = {
        name: Contestant(contestants(TINY.rank)[name](linear), TINY, torch.float32, "cpu").kept_bytes()
        for name in ("lora", "neat", "peft peanut")
    }
    h, z, update = (size * n for n in (TINY.tokens * TINY.rank, TINY.inputs * TINY.rank, TINY.inputs * TINY.outputs))
    assert kept["lora"] == h
    assert h + z <= kept["neat"] <= h + 2 * z
    assert kept["peft peanut"] >= update
    assert kept["neat"] <= kept["peft peanut"] / 8


def test_peak_memory_counts_weights_inputs_and_what_a_step_adds():
    linear = torch.nn.Linear(TINY.inputs, TINY.outputs)
    contestant = Contestant(contestants(TINY.rank)["lora"](linear), TINY, torch.float32, "cpu")
    contestant.step()
    resident = 4 * (
        TINY.inputs * TINY.outputs + TINY.outputs + TINY.tokens * (TINY.inputs + TINY.outputs)
        + 3 * TINY.rank * (TINY.inputs + TINY.outputs)
    )  # fmt: skip
    output_and_gradient = 4 * TINY.tokens * (TINY.inputs + TINY.outputs)
    peak = contestant.peak_bytes()
    assert resident + 4 * TINY.tokens * TINY.outputs < peak < resident + 2 * output_and_gradient


def test_the_shipped_file_is_its_json_rendered():
    for path in (ROOT / "results" / "bench").glob("*.json"):
        found = json.loads(path.read_text())
        assert path.stem == file_name(found["environment"]["device"])
        assert path.with_suffix(".md").read_text() == to_markdown(found)


def test_the_command_line_on_two_batches_of_a_whole_run(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "bench_methods.py"), "--only", "runs", "--items", "64",
              "--rounds", "1", "--output", str(tmp_path)]  # fmt: skip
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("*.json")
    (runs,) = json.loads(path.read_text())["runs"]
    assert [part["items"] for part in runs["rows"].values()] == [64, 64]
    for part in runs["rows"].values():
        assert part["ratios"]["transformers Trainer + peft lora"]["time"] == 1.0
        assert set(part["ratios"]) > {"ours, lora", "ours, neat", "ours, dora"}
    assert "| ours, neat |" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_one_line():
    script = [sys.executable, str(ROOT / "scripts" / "bench_methods.py"), "--device", "cuda"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --device cuda needs a CUDA device")
