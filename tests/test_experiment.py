"""A run's record: what it holds, when it is reused, and what happens when it cannot be written."""

import json

import numpy as np
import pandas as pd
import pytest

from neat_bench.errors import InputError
from neat_bench.experiment import path_of, run
from neat_bench.results.record import flags
from neat_bench.results.store import read_record, read_records


def test_the_record_holds_what_a_reader_needs(tiny_config, tmp_path):
    config = tiny_config("method=neat", "trainer.epochs=3", "optimizer.lr=5e-3", "seed=4")
    run(config, ["method=neat", f"paths.results={config.paths.results}", "seed=4"])
    path = path_of(config)
    assert path.relative_to(tmp_path / "results" / "runs").parts[:4] == ("own", "words", "tiny", "neat")
    assert path.name == "seed4.json"
    text = path.read_text()
    record = json.loads(text)
    assert text == json.dumps(record, indent=1, sort_keys=True) + "\n"
    assert record["source"] == "measured"
    assert record["overrides"] == ["method=neat", "seed=4"]
    assert record["config"]["optimizer"]["lr"] == 5e-3
    assert record["hashes"]["config"] == path.parent.name
    assert record["seeds"] == {"init": 4, "order": 4, "dropout": 4}
    assert [origin["rows"] for origin in record["data"]] == [48, 24]
    assert set(record["results"]) == {"split_validation", "best_dev", "last"}
    assert record["protocol"] == {"reported": "split_validation", "selection_items": 12, "report_items": 12}
    assert [scores["epoch"] for scores in record["history"]] == [0, 1, 2]
    assert record["parameters"]["trainable"] == 3 * 2 * 2 * 32 * 8 + record["parameters"]["head"]
    assert record["parameters"]["adapter_bytes"] == 4 * record["parameters"]["trainable"]
    for key in (
        "train_seconds",
        "seconds_per_step",
        "tokens_per_second",
        "peak_memory_bytes",
        "training_flops_estimate",
    ):
        assert record["cost"][key] > 0
    assert record["cost"]["steps"] == 3 * 6
    assert record["environment"]["packages"]["torch"]
    assert str(tmp_path) not in text.replace(json.dumps(record["config"]["model"]["path"]), "").replace(
        json.dumps(record["config"]["dataset"]["files"]), ""
    )


def test_items_reproduce_every_reported_number(tiny_config):
    config = tiny_config("method=lora", "trainer.epochs=3", "optimizer.lr=5e-3")
    record = run(config, [])
    items = pd.read_parquet(path_of(config).with_suffix(".items.parquet"))
    for rule, result in record["results"].items():
        rows = items[items.step == result["step"]]
        assert sorted(rows.id) == list(range(24))
        counted = rows[rows.part == "report"] if rule == "split_validation" else rows
        assert counted.correct.mean() == pytest.approx(result["accuracy"])
        assert ((rows.prediction == rows.label) == rows.correct).all()
        assert rows.score.between(0.5, 1).all()


def test_real_learning_is_seen(tiny_config):
    record = run(tiny_config("method=full", "trainer.epochs=8", "optimizer.lr=3e-3"), [])
    losses = [scores["train_loss"] for scores in record["history"]]
    assert losses[-1] < 0.5 * losses[0]
    assert record["results"]["last"]["accuracy"] > 0.9
    assert record["flags"] == []


@pytest.mark.parametrize(("predictions", "labels", "options", "expected"), [
    ([1, 1, 1, 1], [1, 1, 1, 0], 2, ["constant_prediction", "at_chance"]),
    ([1, 0, 0, 0], [1, 1, 1, 0], 2, ["at_chance"]),
    ([1, 1, 0, 0], [1, 1, 0, 0], 2, []),
    (list("abcd"), list("abxy"), 4, []),
    (list("abcd"), list("axyz"), 4, ["at_chance"]),
    ([2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0], None, ["constant_prediction"]),
    ([1.0, float("nan"), 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], None, ["not_finite"]),
])  # fmt: skip
def test_collapse_is_flagged(predictions, labels, options, expected):
    options = None if options is None else np.full(len(labels), options)
    assert flags(np.array(predictions), np.array(labels), options) == expected


def test_a_correlation_above_zero_is_above_chance_whatever_the_accuracy():
    labels = np.array([1] * 7 + [0] * 3)
    predictions = np.array([1] * 5 + [0] * 5)  # right on 8 of 10: better than always 1
    worse = np.array([1] * 4 + [0] * 6)  # on 7 of 10: as good as that
    both = np.full(10, 2)
    assert flags(predictions, labels, both) == []
    assert flags(worse, labels, both) == ["at_chance"]
    assert flags(worse, labels, both, "matthews_correlation") == []
    assert flags(1 - worse, labels, both, "matthews_correlation") == ["at_chance"]
    assert flags(np.ones(10, dtype=int), labels, both, "matthews_correlation") == ["constant_prediction", "at_chance"]


def test_regression_reports_correlations(tiny_config, word_files, tmp_path):
    frame = pd.read_csv(word_files / "train.csv")
    frame["stars"] = np.where(frame.stars == "up", 4.5, 0.5)
    frame.to_parquet(tmp_path / "numbers.parquet")
    files = f"dataset.files={{train:{tmp_path}/numbers.parquet,validation:{tmp_path}/numbers.parquet}}"
    overrides = [files, "dataset.classes=null", "dataset.metric=pearson", "dataset.extra_metrics=[spearman]"]
    record = run(tiny_config("method=full", "trainer.epochs=12", "optimizer.lr=3e-3", *overrides), [])
    assert record["results"]["last"]["pearson"] > 0.8
    assert set(record["results"]["last"]) == {"epoch", "step", "pearson", "spearman"}


def test_a_recorded_run_is_reused_and_rerun_repeats_it(tiny_config, capsys):
    config = tiny_config("method=linear_probe")
    first = run(config, [])
    path = path_of(config)
    written = path.stat().st_mtime_ns
    assert run(config, []) == json.loads(json.dumps(first))
    assert path.stat().st_mtime_ns == written
    assert "already recorded" in capsys.readouterr().out
    run(tiny_config("method=linear_probe", "rerun=true"), [])
    assert path.stat().st_mtime_ns > written


def test_a_damaged_record_is_named_and_the_run_repeated(tiny_config):
    config = tiny_config("method=linear_probe")
    run(config, [])
    path_of(config).write_text('{"schema": 1')
    with pytest.warns(UserWarning, match="cannot be read.*the run is repeated"):
        run(config, [])
    assert read_record(path_of(config))["source"] == "measured"


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"schema": 1', "\x00\xff"])
def test_unreadable_records_are_skipped_with_a_warning(tiny_config, tmp_path, text):
    config = tiny_config("method=linear_probe")
    run(config, [])
    (path_of(config).parent / "seed9.json").write_text(text)
    with pytest.warns(UserWarning, match=r"skipped: .*seed9\.json"):
        found = list(read_records(tmp_path / "results"))
    assert [record["seed"] for record in found] == [0]


def test_a_results_folder_that_cannot_be_written_is_said_before_training(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    config = tiny_config(f"paths.results={tmp_path}/file/results")
    with pytest.raises(InputError, match=r"cannot write .*set paths\.results"):
        run(config, [])


def test_a_full_disk_leaves_no_half_written_file(tiny_config, tmp_path, monkeypatch):
    """The record's write fails as on a full disk; neither record nor temporary file stays."""
    from pathlib import Path

    original = Path.write_text

    def full(self, text, *rest, **options):
        if "seed0" in self.name and '"schema"' in text:
            original(self, text[: len(text) // 2])
            raise OSError(28, "No space left on device")
        return original(self, text, *rest, **options)

    monkeypatch.setattr(Path, "write_text", full)
    config = tiny_config("method=linear_probe")
    with pytest.raises(InputError, match="No space left on device; free some space"):
        run(config, [])
    assert not list((tmp_path / "results").rglob("*.json"))


def test_same_seed_gives_every_method_the_same_head_and_items(tiny_config):
    records = [
        run(tiny_config(f"method={name}", "optimizer.lr=0", "trainer.epochs=1"), []) for name in ("neat", "lora")
    ]
    assert records[0]["results"] == records[1]["results"]
    assert records[0]["history"][0]["train_loss"] == pytest.approx(records[1]["history"][0]["train_loss"], abs=0.05)


def test_what_does_not_change_a_number_does_not_change_the_hash(tiny_config):
    base = path_of(tiny_config())
    assert path_of(tiny_config("logger=wandb", "launcher=slurm", "rerun=true")) == base
    assert path_of(tiny_config("seed=1")).parent == base.parent
    assert path_of(tiny_config("optimizer.lr=0.5")).parent != base.parent


def test_wandb_gets_the_runs_numbers_and_its_failure_does_not_end_the_run(tiny_config, monkeypatch, capsys):
    import wandb

    logged, started = [], {}

    class Run:
        def __init__(self):
            self.summary = {}

        def log(self, values, step):
            logged.append(values)
            if step > 6:
                raise ConnectionError("gone")

        def finish(self):
            raise AssertionError("a failed run is not finished")

    def init(**options):
        started.update(options)
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.delenv("WANDB_MODE")
    record = run(tiny_config("method=neat", "logger=wandb", "trainer.log_every=1"), [])
    assert (started["name"], started["group"]) == ("neat-words-seed0", "own/words")
    assert {"neat", "own", "words", "tiny"} <= set(started["tags"])
    assert started["mode"] == "offline"
    assert {"train/loss", "train/lr_adapter", "train/lr_head", "train/gradient_norm"} <= set(logged[0])
    assert record["results"]
    assert "warning: W&B failed (ConnectionError: gone)" in capsys.readouterr().err


def test_wandb_is_online_only_with_a_key(monkeypatch, tmp_path):
    from neat_bench.results.loggers import has_key

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not has_key()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_key()
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert has_key()
