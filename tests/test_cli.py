"""The command line as a user meets it: what is refused, in one line, with a non-zero exit."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("hub", ["refuses", "never answers"])
def test_a_hub_that_cannot_be_reached_is_said_within_seconds(tmp_path, hub):
    """In a process of its own, with an address where nobody listens, or one that takes the call and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = "http://127.0.0.1:9" if hub == "refuses" else f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"HF_ENDPOINT": where, "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "run.py", "dataset=glue/sst2", "logger=none", f"paths.results={tmp_path}"]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    assert time.monotonic() - started < (10 if hub == "refuses" else 16)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot reach the hub at {where}")
    assert "data/glue/sst2/train.parquet" in done.stderr
    assert "HF_HUB_OFFLINE=1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_model_that_is_nowhere_says_the_ways_to_get_it(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "run.py", "model=roberta_base", "logger=none", f"paths.results={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot load the model roberta_base from FacebookAI/roberta-base")
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_lists_groups_and_three_examples(command):
    code, out, _ = command("--help")
    assert code == 0
    for group in ("method:", "dataset/glue:", "model:", "optimizer:", "scheduler:", "trainer:", "protocol:", "logger:",
                  "launcher:", "experiment:"):  # fmt: skip
        assert group in out
    assert out.count("python run.py") >= 3


def test_help_is_fast():
    """Two seconds on a quiet machine; a loaded one is given more, and the imports are checked instead."""
    script = """
import runpy, sys
sys.argv = ["run.py", "--help"]
try:
    runpy.run_path("run.py", run_name="__main__")
except SystemExit:
    pass
print([name for name in ("torch", "transformers", "datasets", "wandb") if name in sys.modules])
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("[]")
    assert time.monotonic() - started < 6
