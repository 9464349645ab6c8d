"""Several processes: the numbers of one, no two that write, and none that outlives another's failure."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neat_bench.config import build, compose
from neat_bench.experiment import path_of, run
from neat_bench.training.batches import LengthBucketedBatches

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/ddp.yaml",
          "--num_processes", "2", "--main_process_port", "0", "run.py"]  # fmt: skip


@pytest.fixture
def still_folder(tiny_folder, tmp_path):
    """The tiny model without dropout, whose masks depend on how a batch is shared."""
    import shutil

    folder = tmp_path / "still"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def launched(overrides, *more, environment=None):
    command = [*LAUNCH, *overrides, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")} | (environment or {})
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)


def largest_and_mean(found, expected):
    """Return the largest and the mean difference over all tensors: a real bug leans to one side."""
    differences = torch.cat([(found[name] - value).flatten() for name, value in expected.items()])
    return differences.abs().max().item(), abs(differences.mean().item())


def test_two_processes_give_what_one_gives(tiny_overrides, still_folder, tmp_path):
    # 47 rows in micro-batches of 8, two a step: uneven shares, and a micro-batch that one process has no row of
    common = [*tiny_overrides, f"model.path={still_folder}", "method=neat", "method.dropout=0", "optimizer.lr=1e-2",
              "trainer.limit_train=41", "trainer.accumulation=2", "trainer.save_adapter=true"]  # fmt: skip
    one = build(compose(common))
    run(one, [])
    done = launched(common, f"paths.results={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recorded:") == 1  # the main process alone speaks and writes
    two = path_of(build(compose([*common, f"paths.results={tmp_path}/two"])))
    records = [json.loads(path.read_text()) for path in (path_of(one), two)]
    assert [record["environment"]["processes"] for record in records] == [1, 2]
    for ours, theirs in zip(*(record["history"] for record in records), strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], abs=1e-5)
        for part in ("whole", "selection", "report"):
            assert theirs[part] == pytest.approx(ours[part], abs=1e-5)
    assert [record["cost"]["items"] for record in records] == [82, 82]
    found, expected = (load_file(p.with_suffix(".adapter") / "adapter.safetensors") for p in (two, path_of(one)))
    largest, mean = largest_and_mean(found, expected)
    assert largest < 1e-5
    assert mean < 1e-7
    assert [path.name for path in two.parent.iterdir() if path.is_file()].count("seed0.json") == 1
    # started again, all processes agree that there is nothing to do
    again = launched(common, f"paths.results={tmp_path}/two")
    assert again.returncode == 0, again.stderr
    assert "already recorded" in again.stdout


def test_a_process_that_fails_ends_the_others_within_seconds(tiny_overrides, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "def die():\n"
        f"    root = {str(tmp_path)!r}\n"
        "    while not any(name.startswith('step-') for _, names, _ in os.walk(root) for name in names):\n"
        "        time.sleep(0.01)\n"
        f"    open({str(tmp_path / 'died')!r}, 'w').close()\n"
        "    os._exit(3)\n"
        "if os.environ.get('RANK') == '1':\n"
        "    threading.Thread(target=die, daemon=True).start()\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT / "src")])}
    more = ("trainer.epochs=2000", "checkpoint.every=1", f"paths.results={tmp_path}/two")
    done = launched(tiny_overrides, *more, environment=environment)
    assert done.returncode != 0
    assert time.time() - (tmp_path / "died").stat().st_mtime < 30
    assert not list((tmp_path / "two").rglob("seed*.json"))


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_the_shares_of_a_micro_batch_are_the_micro_batch(processes):
    lengths = list(range(1, 24))
    whole = LengthBucketedBatches(lengths, 8, 2, seed=1)
    shares = [LengthBucketedBatches(lengths, 8, 2, 1, process, processes) for process in range(processes)]
    for step in whole.step_batches():
        cut = [list(share.micro_batches(step)) for share in shares]
        for number, (rows, _) in enumerate(whole.micro_batches(step)):
            counted = [row for share in cut for row in share[number][0] if share[number][1]]
            assert sorted(counted) == sorted(rows)
            assert all(share[number][0] for share in cut)
