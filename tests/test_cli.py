"""The command line as a user meets it: what is refused, in one line, with a non-zero exit."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]


def one_line_error(found):
    code, _, err = found
    lines = [line for line in err.strip().splitlines() if line.strip()]
    assert code == 1
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 500
    return lines[0]


@pytest.mark.parametrize(("arguments", "message"), [
    ("method=nosuch", "unknown method 'nosuch'; valid: adalora, bitfit"),
    ("method=nea", "unknown method 'nea'; did you mean 'neat'?"),
    ("dataset=glue/sst", "unknown dataset 'glue/sst'; did you mean 'glue/sst2'?"),
    ("metod=neat", "unknown key 'metod'; did you mean 'method'?"),
    ("method.rankk=3", "unknown key 'method.rankk'; did you mean 'rank'?"),
    ("trainer.epohcs=3", "unknown key 'trainer.epohcs'; did you mean 'epochs'?"),
    ("+method.rankk=3", "unknown key 'method.rankk'; did you mean 'rank'?"),
    ("+nosuch=1", "unknown key 'nosuch'"),
    ("method.rank=abc", "method.rank"),
    ("method.rank=0", "method.rank is at least 1, not 0"),
    ("method.rank=100000", "method.rank=100000 is larger than the matrix"),
    ("method.depth=3", "method.depth is an even number"),
    ("method.targets=[nosuch]", "unknown role 'nosuch'; valid: block, key"),
    ("method.targets=[mlp_gate]", "this model has no 'mlp_gate'; it has query, key, value"),
    ("method.layers=7:", "selects none of the model's 6 layers"),
    ("trainer.precision=fp16 trainer.device=cpu", "trainer.precision=fp16 needs a GPU"),
    ("optimizer.lr=-1", "optimizer.lr is not negative"),
    ("trainer.epochs=0", "trainer.epochs is at least 1"),
    ("trainer.batch_size=-3", "trainer.batch_size is at least 1"),
    ("-m dataset=glob(nosuch/*)", "the sweep has no jobs: dataset=glob(nosuch/*) matches nothing"),
    ("-m method=neat,nosuch", "unknown method 'nosuch'"),
    ("-m method.rank=4,0", "method.rank is at least 1"),
    ("method=[neat", "cannot read"),
    ("optimizer=null", "Config group override must be a string"),
    ("model.path=/nosuch", "holds no config.json"),
    ("dataset.files={train:/nosuch.csv,validation:/nosuch.csv} "
     "dataset._target_=neat_bench.data.text.TextClassification", "/nosuch.csv does not exist"),
    ("paths.results=/dev/null/x", "cannot write"),
    ("model.packaged.package=no-such-package", "the package no-such-package is not installed"),
    ("model.packaged.sha256=0123", "is not the file this project knows"),
])  # fmt: skip
def test_bad_input_ends_in_one_line(command, tmp_path, arguments, message):
    extra = [] if "paths.results" in arguments else [f"paths.results={tmp_path}"]
    paths = [*extra, f"paths.cache={tmp_path}/cache", f"paths.logs={tmp_path}/logs"]
    assert message in one_line_error(command(*arguments.split(), "logger=none", *paths))
    assert not list(tmp_path.rglob("*.json"))


def write_glue(folder, frame, split):
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize(("column", "values", "message"), [
    ("text", ["a", "b"], "no column 'sentence'; it has text, label"),
    ("sentence", [], "split train: no rows"),
    ("sentence", ["a", "b"], "label 7 is not 0 to 1"),
])  # fmt: skip
def test_bad_parquet_ends_in_one_line(command, tmp_path, column, values, message):
    frame = pd.DataFrame({column: values, "label": [7] * len(values)})
    for split in ("train", "validation"):
        write_glue(tmp_path / "glue" / "sst2", frame, split)
    found = command("dataset=glue/sst2", "logger=none", f"paths.data={tmp_path}", f"paths.results={tmp_path}/r")
    assert message in one_line_error(found)


def test_a_hub_that_cannot_be_reached_is_said_within_ten_seconds(tmp_path):
    """In a process of its own, with an address where nobody listens."""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "run.py", "dataset=glue/sst2", "logger=none", f"paths.results={tmp_path}"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    assert time.monotonic() - started < 10
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot reach the hub at http://127.0.0.1:9")
    assert "data/glue/sst2/train.parquet" in done.stderr
    assert "HF_HUB_OFFLINE=1" in done.stderr


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
