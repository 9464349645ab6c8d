"""The README's commands, examples and claims, run as they stand there."""

import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pandas as pd
import pytest
import yaml

from neat_bench.config import names_in

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    line.split(" #")[0].strip() for kind, body in BLOCKS if kind == "bash" for line in body.strip().splitlines()
]
RUNS = [line for line in COMMANDS if line.startswith("python run.py")]
EXAMPLES = ("method=input_gain", "my_configs")  # have tests of their own


def block(kind, containing):
    (found,) = [body for language, body in BLOCKS if language == kind and containing in body]
    return found


@pytest.fixture
def glue_files(tmp_path):
    """Rows in GLUE's columns, enough for a step."""
    rows = {"sentence": ["fine film", "bad film"] * 8, "sentence1": ["a b", "c"] * 8, "sentence2": ["d", "e f"] * 8,
            "question": ["who", "what"] * 8, "question1": ["who", "what"] * 8, "question2": ["why", "how"] * 8,
            "premise": ["a", "b"] * 8, "hypothesis": ["c", "d"] * 8, "label": [0, 1] * 8}  # fmt: skip
    for task in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"):
        folder = tmp_path / "data" / "glue" / task
        folder.mkdir(parents=True)
        for split in ("train", "validation", "validation_matched"):
            pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    return tmp_path / "data"


def small(tiny_folder, tmp_path):
    """Overrides that leave a README command what it is, on a tiny model for one step."""
    return [f"model.path={tiny_folder}", "model.pooling=native", "trainer.max_steps=1", "trainer.limit_train=16",
            "trainer.limit_evaluation=16", "trainer.device=cpu", "dataset.selection_items=null",
            f"paths.results={tmp_path}/results", f"paths.cache={tmp_path}/cache", f"paths.logs={tmp_path}/logs",
            f"paths.data={tmp_path}/data"]  # fmt: skip


@pytest.mark.parametrize("line", [line for line in RUNS if not any(name in line for name in EXAMPLES)])
def test_every_run_command_runs(command, tiny_folder, glue_files, tmp_path, tmp_path_factory, line):
    arguments = shlex.split(line)[2:]
    if "experiment=glue" in line:  # hundreds of jobs: two of its cells; test_config composes the whole grid
        arguments += ["dataset=glue/rte,glue/cola", "method=neat", "seed=42"]
        arguments += ["optimizer.lr=1e-3"] if "equal" in line else []
    if "method=neat_s" in line:
        arguments.append("method.layers='1:'")  # the tiny model has three
    if "experiment=quickstart" in line:
        arguments = [*(a for a in arguments if "seed" not in a), "method=neat", "seed=0,1"]
    if "experiment=ablation" in line or "experiment=zoo" in line:  # two of their jobs; test_config composes the grids
        arguments += ["method=neat,lora", "seed=0"]
    if "-m" in arguments and "seed=42,43" in line:
        arguments = ["-m", "method=neat,lora", "dataset=glue/rte", "seed=42"]
    if "seed=0,1,2" in line and "method=neat,lora,dora" in line:
        arguments = ["-m", "method=neat,linear_probe", "seed=0"]
    overrides = small(tiny_folder, tmp_path)
    if "math" in line or "commonsense" in line:  # the packaged language model itself
        arguments = [a for a in arguments if not a.startswith("seed")] + ["seed=0"]
        overrides = [o for o in overrides if not o.startswith("model.")]
        overrides += ["trainer.limit_train=4", "trainer.limit_evaluation=2", "trainer.evaluation_batch_size=2"]
        # converted once for all workers
        cache = tmp_path_factory.getbasetemp().parent / "language_cache"
        overrides += ["trainer.batch_size=2", f"paths.cache={cache}"]
    if "vision" in line:  # the packaged backbone itself, at two patches by two
        overrides = [o for o in overrides if not o.startswith("model.")] + ["dataset.image_size=28"]
    code, out, err = command(*arguments, *overrides)
    assert code == 0, err
    if "--cfg" in arguments:
        assert "FacebookAI/roberta-base" in out
    else:
        assert list((tmp_path / "results").rglob("seed*.json")) or "jobs" in out


def test_every_other_command_is_known_here():
    """What is neither a run nor in this list has no test: add one."""
    others = {line for line in COMMANDS if line not in RUNS}
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make test" in others
    assert "make test" in ci
    assert others - {"make test"} == {
        "make demo", "make tables", "make bench",  # tests/benchmark runs what the last calls
        "python scripts/make_tables.py --table quickstart --print",
        "python scripts/make_tables.py --protocol best_dev",
        "python scripts/run_grid.py embedded",  # tests/test_grid.py runs a small one
        "python scripts/make_tables.py --grid embedded",
        "python scripts/make_tables.py --table packaged_images --print",
        "python scripts/make_tables.py --table ablation --print",
        "python scripts/make_tables.py --table packaged_language --print",
        "python scripts/count_parameters.py model=llama3_8b method=neat dataset=commonsense/commonsense_170k",
    }  # fmt: skip


def test_demo_and_tables_are_commands_that_run(command, tiny_folder, tmp_path):
    """`make demo` is the quickstart and its table; both run here, small, and the table is printed."""
    done = subprocess.run(["make", "-n", "demo", "tables"], capture_output=True, text=True, cwd=ROOT)
    assert "run.py experiment=quickstart" in done.stdout
    assert "scripts/make_tables.py --table quickstart --print" in done.stdout
    code, _, err = command("experiment=quickstart", *(
        o for o in small(tiny_folder, tmp_path) if "limit" not in o and "selection" not in o
    ))  # fmt: skip
    assert code == 0, err
    for arguments in (["--table", "quickstart", "--print"], ["--protocol", "best_dev"], []):
        script = [sys.executable, "scripts/make_tables.py", "--results", str(tmp_path / "results"), *arguments]
        done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        if "--print" in arguments:
            for label in ("NEAT", "LoRA", "DoRA", "RED", "Full fine-tuning", "Linear probe"):
                assert f"| {label} |" in done.stdout
    names = {path.name for path in (tmp_path / "results" / "tables").iterdir()}
    assert {"quickstart.md", "quickstart.tex", "quickstart.csv", "quickstart_best_dev.md"} <= names


def test_parameters_are_counted_without_weights():
    (line,) = [line for line in COMMANDS if "count_parameters" in line]
    done = subprocess.run([sys.executable, *shlex.split(line)[1:]], capture_output=True, text=True, cwd=ROOT)
    # rank 32 on q, k, v, up and down of 32 layers: 2 r (4096 + 1024 + 1024 + 14336 + 4096) each
    assert f"{32 * 2 * 32 * 24576:,} of 8,030,261,248 parameters train" in done.stdout


def test_make_help_lists_every_target():
    out = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT).stdout
    for target in ("install", "demo", "test", "tables", "bench", "lint", "clean"):
        assert re.search(rf"^{target}\s+\w", out, flags=re.M)


def test_the_worked_example_of_a_method(command, tiny_folder, tmp_path, monkeypatch):
    """Its Python block is a method that trains, its YAML block its config; the contract's faces agree."""
    name = "neat_bench.methods.input_gain"
    module = module_from_spec(spec_from_loader(name, loader=None))
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(block("python", "class InputGain"), "README.md", "exec"), module.__dict__)  # our own text
    import torch
    import torch.nn.functional as F

    linear = torch.nn.Linear(6, 4).requires_grad_(False)
    adapted = module.InputGainMap(linear.weight)
    x = torch.randn(3, 6)
    torch.testing.assert_close(adapted(x, linear), linear(x))
    with torch.no_grad():
        adapted.gain.uniform_(-1, 1)
    torch.testing.assert_close(adapted(x, linear), F.linear(x, *adapted.merged(linear.weight, linear.bias)))
    (tmp_path / "more" / "method").mkdir(parents=True)
    (tmp_path / "more" / "method" / "input_gain.yaml").write_text(block("yaml", "input_gain.InputGain"))
    code, out, err = command("--config-dir", f"{tmp_path}/more", "method=input_gain", "logger=none",
                             *small(tiny_folder, tmp_path))  # fmt: skip
    assert code == 0, err
    assert "/input_gain/" in out


@pytest.mark.parametrize("sweep", [False, True])
def test_the_worked_example_of_own_data(command, tiny_folder, tmp_path, monkeypatch, sweep):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "my_configs" / "dataset" / "my" / "reviews.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(block("yaml", "my/reviews"))
    (tmp_path / "my_data").mkdir()
    for split in ("train", "validation"):
        rows = {"review": ["a fine film", "a poor film"] * 10, "verdict": ["good", "bad"] * 10}
        pd.DataFrame(rows).to_csv(tmp_path / "my_data" / f"{split}.csv", index=False)
    (line,) = [line for line in RUNS if "my_configs" in line]
    arguments = shlex.split(line)[2:] + (["-m"] if sweep else [])
    arguments = [*arguments[-1:], *arguments[:-1]] if sweep else arguments
    code, out, err = command(*arguments, "logger=none", *small(tiny_folder, tmp_path))
    assert code == 0, err
    assert "results/runs/my/reviews/minilm_l6/lora" in out


def test_the_states_table_lists_every_method():
    table = README.split("## State")[1].split("\n## ")[0]
    for name in names_in("method"):
        assert f"`{name}`" in table


def test_the_demos_output_is_the_tables_shape():
    shown = block("text", "| Method |")
    for label in ("NEAT", "LoRA", "DoRA", "RED", "Full fine-tuning", "Linear probe"):
        assert f"| {label} |" in shown


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "Apache-2.0"
