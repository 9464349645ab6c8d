"""Sweeps: one process a job, skipping, failures that do not spread, and the same numbers as alone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from neat_bench.config import LauncherSettings, compose
from neat_bench.experiment import path_of, run
from neat_bench.files import alone_at
from neat_bench.launchers import RunJob
from neat_bench.sweep import plan

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def begun(*arguments):
    """Start a sweep in a process group of its own."""
    return subprocess.Popen([sys.executable, "run.py", "-m", *arguments], cwd=ROOT, env=ENVIRONMENT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def sweep(command, tiny_overrides):
    return lambda *arguments: command("-m", *tiny_overrides, *arguments)


def test_jobs_give_what_they_give_alone_and_are_not_repeated(sweep, tiny_config, tmp_path):
    code, out, err = sweep("method=neat,linear_probe", "seed=0,1")
    assert code == 0, err
    assert "4 jobs, 0 already recorded" in out
    assert "[4/4] linear_probe  own/words  tiny  seed 1" in out
    assert "  [4] epoch 2/2" in out
    assert "1 of 4 jobs to go, about 0 min" in out
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


def test_a_jobs_title_tells_it_from_its_like(tiny_overrides):
    lines = [[*tiny_overrides, f"method={method}", f"optimizer.lr={rate}", "seed=0"]
             for method, rate in (("neat", 1e-3), ("neat", 1e-2), ("lora", 1e-2))]  # fmt: skip
    titles = [job.title for job in plan(lines, [compose(each) for each in lines])]
    start = "own/words  tiny  seed 0"
    assert titles == [f"neat  {start}  optimizer.lr=0.001", f"neat  {start}  optimizer.lr=0.01", f"lora  {start}"]


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
    left = Path(out.split("traceback: ")[1].split(")")[0])
    assert "Traceback" in left.read_text()
    assert left.parent.is_relative_to(tmp_path / "results")
    # the next success takes it away
    shutil.copy(tiny_folder / "tokenizer.json", broken)
    assert sweep(f"model.path={broken}", "method=linear_probe", "trainer.max_steps=1")[0] == 0
    assert not left.exists()


def test_jobs_that_would_write_one_record_are_one_job(sweep):
    code, out, _ = sweep("method=linear_probe", "seed=0,0", "trainer.max_steps=1")
    assert code == 0
    assert "1 jobs" in out


def test_nothing_of_hydras_own_is_left_behind(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, _ = sweep("method=linear_probe", "trainer.max_steps=1")
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"results", "cache", "logs"}


def test_two_sweeps_share_the_jobs_and_repeat_none(tiny_overrides, tmp_path):
    arguments = [*tiny_overrides, "method=linear_probe,full", "seed=0,1"]
    sweeps = [begun(*arguments), begun(*arguments)]
    outputs = [sweep.communicate(timeout=200)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    assert sum(output.count("epoch 2/2") for output in outputs) == 4
    assert all("epoch 2/2" in output for output in outputs)  # both worked
    assert len(list((tmp_path / "results").rglob("seed*.json"))) == 4
    assert not list((tmp_path / "results").rglob("*.lock"))
    assert not list((tmp_path / "results").rglob("*.queued"))


def test_a_sweep_that_is_killed_goes_on_without_repeating_or_losing_a_run(tiny_overrides, tmp_path):
    arguments = [*tiny_overrides, "method=linear_probe", "seed=0,1,2", "trainer.epochs=3"]
    sweep = begun(*arguments)
    records = lambda: {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("seed*.json")}  # noqa: E731
    wait_for(records)
    time.sleep(1)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.communicate()
    before = records()
    assert 0 < len(before) < 3
    sweep = begun(*arguments)
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 0, output
    assert f"3 jobs, {len(before)} already recorded" in output
    assert len(records()) == 3
    assert {path: records()[path] for path in before} == before


def test_an_interrupted_sweep_lets_its_job_save_and_ends_with_a_code(tiny_overrides, tmp_path):
    arguments = [*tiny_overrides, "method=linear_probe", "trainer.epochs=400", "checkpoint.every=null"]
    sweep = begun(*arguments)
    wait_for(lambda: any("epoch 2/" in path.read_text() for path in (tmp_path / "logs").rglob("*.out")))
    sweep.send_signal(signal.SIGTERM)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + signal.SIGINT
    assert "1 running jobs save a checkpoint" in output
    assert len(list((tmp_path / "logs").rglob("step-*"))) == 1
    assert not list((tmp_path / "results").rglob("*.lock"))
    assert not list((tmp_path / "results").rglob("*.queued"))


def test_a_run_waits_for_the_process_that_is_at_it_and_takes_its_record(tiny_config, capsys):
    config = tiny_config("method=linear_probe")
    path = path_of(config)
    path.parent.mkdir(parents=True)
    found = []
    with alone_at(path):
        other = threading.Thread(target=lambda: found.append(run(config, [])))
        other.start()
        wait_for(lambda: "waiting for its end" in capsys.readouterr().err)
        assert not path.exists()
    other.join(timeout=60)
    assert found[0]["names"]["method"] == "linear_probe"


def test_the_claim_of_a_dead_process_does_not_last(tmp_path):
    path = tmp_path / "seed0.json"
    script = (
        "import time; from pathlib import Path; from neat_bench.files import lease_of; "
        f"lease = lease_of(Path({str(path)!r})); lease.acquire(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    assert path.with_suffix(".lock").exists()
    started = time.monotonic()
    with alone_at(path):
        assert time.monotonic() - started < 5
    assert not path.with_suffix(".lock").exists()


def test_a_preempted_job_goes_back_into_the_queue_and_goes_on(tiny_overrides, tiny_config, tmp_path, monkeypatch):
    """With submitit's local executor, whose warning and requeueing are those of Slurm."""
    import submitit

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    more = ["method=linear_probe", "trainer.epochs=20", "checkpoint.every=1000"]
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    executor.update_parameters(timeout_min=60)
    job = executor.submit(RunJob(LauncherSettings()), [*tiny_overrides, *more], [])
    wait_for(lambda: job.stdout() is not None and "epoch 2/" in job.stdout())
    for process in psutil_children(job._process.pid):
        process.send_signal(signal.SIGUSR2)
    wait_for(job.done, 120)
    assert job.result() is None
    record = json.loads(path_of(tiny_config(*more)).read_text())
    assert len(record["cost"]["resumed_at"]) == 1
    alone = run(tiny_config(*more, f"paths.results={tmp_path}/alone"), [])
    assert record["history"] == json.loads(json.dumps(alone["history"]))


def psutil_children(pid):
    import psutil

    return psutil.Process(pid).children()


def test_a_job_of_several_processes_is_launched_by_accelerate(sweep, tmp_path):
    code, out, err = sweep("method=linear_probe", "launcher.processes=2")
    assert code == 0, out + err
    (path,) = (tmp_path / "results").rglob("seed0.json")
    assert json.loads(path.read_text())["environment"]["processes"] == 2


def test_a_job_that_dies_without_a_word_leaves_a_note_too(sweep, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os\nif 'SUBMITIT_LOCAL_GLOBALID' in os.environ: os._exit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/site")
    code, out, _ = sweep("method=linear_probe")
    assert code == 1
    (left,) = (tmp_path / "results").rglob("seed0.failed.txt")
    assert "method=linear_probe" in left.read_text()
    assert str(left) in out


def test_ray_runs_the_jobs_where_it_is_there(sweep, tmp_path):
    pytest.importorskip("ray")
    code, out, err = sweep("method=linear_probe", "seed=0,1", "launcher=ray", "launcher.gpus=0", "launcher.cpus=1")
    assert code == 0, out + err
    assert len(list((tmp_path / "results").rglob("seed*.json"))) == 2


def test_without_ray_its_launcher_says_what_to_install(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = sweep("method=linear_probe", "launcher=ray")
    assert code == 1
    assert "pip install ray" in err
