"""Sweeps: one process a job, skipping, failures that do not spread, and the same numbers as alone."""

import json
from pathlib import Path

import pytest

from neat_bench.experiment import path_of, run


@pytest.fixture
def sweep(command, tiny_overrides):
    return lambda *arguments: command("-m", *tiny_overrides, *arguments)


def test_jobs_give_what_they_give_alone_and_are_not_repeated(sweep, tiny_config, tmp_path):
    code, out, err = sweep("method=neat,linear_probe", "seed=0,1")
    assert code == 0, err
    assert "4 jobs, 0 already recorded" in out
    assert "[4/4] linear_probe  own/words  tiny  seed 1" in out
    assert "epoch 2/2" in out
    paths = sorted((tmp_path / "results").rglob("seed*.json"))
    assert len(paths) == 4
    swept = json.loads(path_of(tiny_config("method=linear_probe", "seed=1")).read_text())
    alone = run(tiny_config("method=linear_probe", "seed=1", f"paths.results={tmp_path}/alone"), [])
    assert swept["history"] == json.loads(json.dumps(alone["history"]))
    written = [path.stat().st_mtime_ns for path in paths]
    code, out, _ = sweep("method=neat,linear_probe", "seed=0,1")
    assert code == 0
    assert "4 jobs, 4 already recorded" in out
    assert [path.stat().st_mtime_ns for path in paths] == written
    assert out.count("already recorded)") >= 4


def test_a_failed_job_is_named_leaves_its_traceback_and_does_not_stop_the_others(sweep, tmp_path):
    code, out, err = sweep("method=full", "optimizer.lr=1e30,1e-3", "trainer.clip_norm=null", "trainer.log_every=1")
    assert code == 1
    assert "FAILED  full" in out
    assert "training loss is" in out
    assert err.strip().splitlines()[-1] == "error: 1 of 2 jobs failed; the others are recorded"
    assert len(list((tmp_path / "results").rglob("seed0.json"))) == 1


def test_an_unexpected_error_keeps_its_traceback(sweep, tiny_folder, tmp_path):
    """A job that breaks for a reason nobody foresaw: here a tokenizer file that is not one."""
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "tokenizer.json").write_text("[]")
    code, out, err = sweep(f"model.path={broken},{tiny_folder}", "method=linear_probe", "trainer.max_steps=1")
    assert code == 1
    assert "1 of 2 jobs failed" in err
    if "traceback: " in out:
        log = Path(out.split("traceback: ")[1].split(")")[0])
        assert "Traceback" in log.read_text()


def test_jobs_that_would_write_one_record_are_one_job(sweep):
    code, out, _ = sweep("method=linear_probe", "seed=0,0", "trainer.max_steps=1")
    assert code == 0
    assert "1 jobs" in out


def test_nothing_of_hydras_own_is_left_behind(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, _ = sweep("method=linear_probe", "trainer.max_steps=1")
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"results", "cache", "logs"}
