"""Runs that are killed, stopped or robbed of a checkpoint end where the uninterrupted run ends, bit for bit."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neat_bench.config import build, compose
from neat_bench.errors import InputError, StoppedBySignal
from neat_bench.experiment import path_of, run
from neat_bench.training.checkpoint import FACTS, TENSORS, Checkpoints, Snapshot
from neat_bench.training.settings import CheckpointSettings
from neat_bench.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
MORE = ["trainer.epochs=3", "trainer.batch_size=4", "trainer.save_adapter=true", "checkpoint.every=1",
        "scheduler.warmup_ratio=0.1", "trainer.accumulation=2"]  # fmt: skip


class Killed(BaseException):
    """What no handler catches, as a kill."""


def config_of(tiny_overrides, where, *more):
    return build(compose([*tiny_overrides, *MORE, f"paths.results={where}/results", f"paths.logs={where}/logs", *more]))


def outcome(config):
    """Return what a run has left behind, but for times and memory."""
    path = path_of(config)
    record = json.loads(path.read_text())
    del record["overrides"]  # as the command line gave them
    for key in ("train_seconds", "seconds_per_step", "items_per_second", "tokens_per_second", "evaluation_seconds",
                "total_seconds", "peak_memory_bytes", "resumed_at"):  # fmt: skip
        record["cost"].pop(key)
    items = path.with_suffix(".items.parquet").read_bytes()
    return record, items, load_file(path.with_suffix(".adapter") / "adapter.safetensors")


def assert_same(found, expected):
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2].keys() == expected[2].keys()
    assert all(torch.equal(value, found[2][name]) for name, value in expected[2].items())


@pytest.fixture
def killed_at(monkeypatch):
    """Let the run die before its n-th optimizer step, counted over all attempts."""

    def arm(steps):
        step, waiting = Trainer._step, list(steps)

        def dying(self, *arguments):
            if waiting and self.timing.steps == waiting[0]:
                waiting.pop(0)
                raise Killed
            return step(self, *arguments)

        monkeypatch.setattr(Trainer, "_step", dying)
        return waiting

    return arm


def finish(config):
    """Run until it is done; return how often it died."""
    for attempt in range(100):
        try:
            run(config, [])
            return attempt
        except Killed:
            continue
    raise AssertionError("it never ends")


@pytest.mark.parametrize("method", ["method=neat", "method=full", "method=lora_ga method.rank=4 method.batches=2",
                                    "method=adalora method.rank=4 method.target_rank=2 method.interval=2",
                                    "method=spt method.batches=2", "method=pst", "method=sara method.low_rank=1e-3",
                                    "method=neat trainer.evaluate_every=4 optimizer=sgd"])  # fmt: skip
def test_a_run_killed_at_many_moments_ends_as_if_nothing_had_been(tiny_overrides, tmp_path, killed_at, method):
    whole = config_of(tiny_overrides, tmp_path / "whole", *method.split())
    run(whole, [])
    steps = outcome(whole)[0]["cost"]["steps"]
    # at the end of an epoch too, and more than once at one step
    moments = sorted([6, *random.Random(0).choices(range(steps), k=19 if method == "method=neat" else 4)])
    waiting = killed_at(moments)
    broken = config_of(tiny_overrides, tmp_path / "broken", *method.split())
    assert finish(broken) == len(moments)
    assert waiting == []
    assert_same(outcome(broken), outcome(whole))
    assert json.loads(path_of(broken).read_text())["cost"]["resumed_at"]
    assert not list((tmp_path / "broken" / "logs").rglob("step-*"))


def test_a_sparse_checkpoint_loses_steps_but_no_bit(tiny_overrides, tmp_path, killed_at):
    whole = config_of(tiny_overrides, tmp_path / "whole")
    run(whole, [])
    killed_at([11])
    broken = config_of(tiny_overrides, tmp_path / "broken", "checkpoint.every=4")
    assert finish(broken) == 1
    assert json.loads(path_of(broken).read_text())["cost"]["resumed_at"] == [8]
    assert_same(outcome(broken), outcome(whole))


def damage(folder, how):
    newest = max(folder.rglob("step-*"))
    if how == "cut":
        (newest / TENSORS).write_bytes((newest / TENSORS).read_bytes()[:100])
    elif how == "changed":
        content = bytearray((newest / TENSORS).read_bytes())
        content[-1] ^= 1
        (newest / TENSORS).write_bytes(bytes(content))
    elif how == "no facts":
        (newest / FACTS).unlink()
    else:
        (newest / FACTS).write_text("{")


@pytest.mark.parametrize("how", ["cut", "changed", "no facts", "half a JSON"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tiny_overrides, tmp_path, killed_at, how, capsys):
    whole = config_of(tiny_overrides, tmp_path / "whole")
    run(whole, [])
    killed_at([9])
    broken = config_of(tiny_overrides, tmp_path / "broken")
    with pytest.raises(Killed):
        run(broken, [])
    damage(tmp_path / "broken" / "logs", how)
    run(broken, [])
    assert "step-000000009 is damaged" in capsys.readouterr().err
    assert json.loads(path_of(broken).read_text())["cost"]["resumed_at"] == [8]
    assert_same(outcome(broken), outcome(whole))


def test_a_signal_is_heeded_after_the_step_and_the_next_run_goes_on(tiny_overrides, tmp_path, monkeypatch):
    whole = config_of(tiny_overrides, tmp_path / "whole")
    run(whole, [])
    step = Trainer._step

    def warned(self, *arguments):
        if self.timing.steps == 5 and not self.resumed_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", warned)
    stopped = config_of(tiny_overrides, tmp_path / "stopped", "checkpoint.every=null")
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(StoppedBySignal, match="after step 6; the same command goes on"):
        run(stopped, [])
    assert signal.getsignal(signal.SIGUSR1) is before
    run(stopped, [])
    assert json.loads(path_of(stopped).read_text())["cost"]["resumed_at"] == [6]
    assert_same(outcome(stopped), outcome(whole))


def test_resume_never_starts_anew_and_keep_leaves_them(tiny_overrides, tmp_path, killed_at):
    killed_at([5])
    config = config_of(tiny_overrides, tmp_path, "resume=never", "checkpoint.keep=true")
    with pytest.raises(Killed):
        run(config, [])
    run(config, [])
    assert json.loads(path_of(config).read_text())["cost"]["resumed_at"] == []
    assert len(list((tmp_path / "logs").rglob("step-*"))) == 2


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", CheckpointSettings())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        checkpoints.save(Snapshot(1, {"a": torch.zeros(1)}, {}))
    assert not list(tmp_path.rglob("step-*"))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match=r"checkpoint\.every is at least 1"):
        build(compose(["checkpoint.every=0"]))


def run_alone_for_long(overrides, more, where):
    """What a process of the test below does."""
    torch.set_num_threads(1)
    run(config_of(overrides, where, *more), [])


def test_a_process_killed_with_9_at_twenty_random_moments_ends_as_if_nothing_had_been(tiny_overrides, tmp_path):
    """Wherever it is: in a step, an evaluation, or half-way through writing a checkpoint."""
    overrides = [*tiny_overrides, "method=neat"]
    long = ["trainer.epochs=50"]
    processes = multiprocessing.get_context("forkserver")  # it has imported everything, and forks in no time
    processes.set_forkserver_preload(["neat_bench.experiment", "neat_bench.training.trainer", "transformers", "peft"])

    def started(where):
        process = processes.Process(target=run_alone_for_long, args=(overrides, long, tmp_path / where))
        process.start()
        return process

    def newest():
        folders = (name for _, names, _ in os.walk(tmp_path / "broken") for name in names)  # rglob trips over a removal
        return max((int(name[5:]) for name in folders if name.startswith("step-")), default=0)

    draw, seen = random.Random(0), 0
    for _ in range(20):
        process = started("broken")
        until = time.monotonic() + 60
        while newest() <= seen and process.is_alive():
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
        assert newest() > seen
        seen = newest()
    for where in ("broken", "whole"):
        process = started(where)
        process.join(timeout=120)
        assert process.exitcode == 0
    broken, whole = (config_of(overrides, tmp_path / where, *long) for where in ("broken", "whole"))
    assert len(json.loads(path_of(broken).read_text())["cost"]["resumed_at"]) == 20
    assert_same(outcome(broken), outcome(whole))


def test_the_real_process_survives_kill_9_and_sigterm(tiny_overrides, tmp_path):
    whole = config_of(tiny_overrides, tmp_path / "whole")
    run(whole, [])
    broken = config_of(tiny_overrides, tmp_path / "broken")
    arguments = [o for o in tiny_overrides if not o.startswith(("paths.results", "paths.logs"))]
    command = [sys.executable, "run.py", *arguments, *MORE, f"paths.results={tmp_path}/broken/results",
               f"paths.logs={tmp_path}/broken/logs"]  # fmt: skip
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        had = {path.name for path in (tmp_path / "broken").rglob("step-*")}
        until = time.monotonic() + 60
        while {path.name for path in (tmp_path / "broken").rglob("step-*")} <= had and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        if number == signal.SIGTERM:
            assert process.returncode == 128 + signal.SIGTERM
            assert "the same command goes on from there" in error
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(outcome(broken), outcome(whole))
