"""A sweep: every job in its own process, one a device; finished runs are skipped, failures do not spread.

Two sweeps may work on one results folder: each takes the jobs that no other process is at.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout
from omegaconf import DictConfig, open_dict

from neat_bench.config import Config, LauncherSettings, build
from neat_bench.errors import InputError
from neat_bench.experiment import path_of
from neat_bench.files import check_writable, lease_of
from neat_bench.launchers import Handle, submitter
from neat_bench.results.store import FAILED, read_record, stored, write_failure

POLL_SECONDS = 0.2
GRACE_SECONDS = 60  # for the running jobs to save when a sweep is interrupted
RECORDED, ALREADY_RECORDED = "recorded", "already recorded"


@dataclass
class Job:
    """One cell of a sweep and what became of it."""

    overrides: list[str]
    config: Config
    path: Path
    queued: SoftFileLease  # held from submission to end: the job's own process takes some time to make its claim
    apart: list[str] = field(default_factory=list)  # overrides that tell it from jobs of the same method, data and seed
    number: int = 0  # in the order of starting
    process: Handle | None = None
    device: int | None = None
    outcome: str = ""  # RECORDED, ALREADY_RECORDED or what went wrong
    shown: int = field(default=0, repr=False)
    seen_failure: int | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        """Method, data set, model, seed, and what tells it from jobs that have these in common."""
        config = self.config
        names = config.method.name, config.dataset.name, config.model.name, f"seed {config.seed}"
        return "  ".join([*names, *self.apart])

    @property
    def recorded(self) -> bool:
        """Whether its record is there and is not to be repeated."""
        return not self.config.rerun and stored(self.path) is not None

    def reserve(self) -> bool:
        """Keep other sweeps from this run; return whether no living process was at it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.queued.acquire(timeout=0)
        except Timeout:
            return False
        try:
            with lease_of(self.path).acquire(timeout=0):
                return True
        except Timeout:
            self.queued.release()
            return False

    @property
    def failed(self) -> bool:
        """Whether the job ended without a record."""
        return self.outcome not in (RECORDED, ALREADY_RECORDED)


def plan(job_overrides: Sequence[Sequence[str]], composed: Sequence[DictConfig]) -> list[Job]:
    """Check every job's composed config before the first one runs; jobs that would write one record are one job."""
    jobs: dict[Path, Job] = {}
    for overrides, job_config in zip(job_overrides, composed, strict=True):
        with open_dict(job_config):
            job_config.pop("hydra", None)
        config = build(job_config)
        path = path_of(config)
        jobs.setdefault(path, Job(list(overrides), config, path, lease_of(path, ".queued")))
    alike: dict[str, list[Job]] = {}
    for job in jobs.values():
        alike.setdefault(job.title, []).append(job)
    for same in alike.values():
        shared = set.intersection(*(set(job.overrides) for job in same))
        for job in same:
            job.apart = [each for each in job.overrides if each not in shared]
    return list(jobs.values())


def run_sweep(jobs: list[Job], config_dirs: list[str]) -> None:
    """Run all jobs, show their progress, print a summary; raises InputError if any failed."""
    waiting = []
    for job in jobs:
        if job.recorded:
            job.outcome = ALREADY_RECORDED
        else:
            waiting.append(job)
    print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} already recorded (rerun=true repeats them)", flush=True)
    if waiting:
        with _interruptible():
            _work(waiting, config_dirs)
    _summarise(jobs)


def _work(waiting: list[Job], config_dirs: list[str]) -> None:
    """Run the jobs; on an interruption tell those that run to save, and wait for them."""
    settings = waiting[0].config.launcher
    check_writable(Path(waiting[0].config.paths.results))
    submit = submitter(waiting[0].config)
    devices: list[int | None] = list(_devices(settings))
    running: list[Job] = []
    total, ended, said, start = len(waiting), 0, False, time.monotonic()
    try:
        while waiting or running:
            while waiting and (devices or settings.name != "local"):
                job = next((job for job in waiting if job.reserve()), None)
                if job is None:
                    if not said:
                        print(f"{len(waiting)} jobs are with other processes: waiting for them", flush=True)
                        said = True
                    break
                waiting.remove(job)
                if job.recorded:  # by another sweep, meanwhile
                    job.outcome = ALREADY_RECORDED
                    job.queued.release()
                    continue
                job.number = total - len(waiting)
                job.device = devices.pop(0) if settings.name == "local" else None
                job.seen_failure = _time_of(job.path.with_suffix(FAILED))
                job.process = submit(job.overrides, config_dirs, job.device)
                running.append(job)
                print(f"[{job.number}/{total}] {job.title}", flush=True)
            for job in [job for job in running if _ended(job)]:
                running.remove(job)
                job.queued.release()
                ended += 1
                if settings.name == "local":
                    devices.append(job.device)
                if left := len(waiting) + len(running):
                    minutes = (time.monotonic() - start) / ended * left / 60
                    print(f"{left} of {total} jobs to go, about {minutes:.0f} min", flush=True)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        _stop(running)
        raise


@contextmanager
def _interruptible() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C inside."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(running: list[Job]) -> None:
    """Let the running jobs save and end; whatever is left after a while, or at a second Ctrl-C, is killed."""
    print(f"interrupted: {len(running)} running jobs save a checkpoint (Ctrl-C again: kill them)", flush=True)
    processes = [job.process for job in running if job.process is not None]
    for process in processes:
        process.stop()
    until = time.monotonic() + GRACE_SECONDS
    try:
        while time.monotonic() < until and not all(process.done() for process in processes):
            time.sleep(POLL_SECONDS)
    finally:
        for job in running:
            if job.process is not None:
                job.process.kill()
            job.queued.release()


def _time_of(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _devices(settings: LauncherSettings) -> Sequence[int | None]:
    """Return the devices of this machine: GPU indices, or as many None as jobs may run at a time."""
    import torch

    gpus = torch.cuda.device_count()
    count = settings.devices or max(gpus, 1)
    return [index % gpus if gpus else None for index in range(count)]


def _ended(job: Job) -> bool:
    """Show what the job has printed since the last look; if it has ended, note its outcome."""
    assert job.process is not None
    done = job.process.done()
    text = job.process.printed()
    for line in text[job.shown :].splitlines():
        if line.strip() and not line.startswith("submitit"):
            print(f"  [{job.number}] {line.lstrip()}", flush=True)
    job.shown = len(text)
    if not done:
        return False
    problem = job.process.problem()
    job.outcome = RECORDED if problem is None else problem
    job.process = None  # with what it keeps open
    failure = job.path.with_suffix(FAILED)
    if problem is not None:
        if _time_of(failure) == job.seen_failure:  # it died without a word
            write_failure(job.path, job.overrides, problem)
        print(f"  [{job.number}] failed: {problem} ({failure})", file=sys.stderr, flush=True)
    return True


def _summarise(jobs: list[Job]) -> None:
    """Print one line a job; raise InputError if any failed."""
    print("\nsummary")
    for job in jobs:
        if job.failed:
            print(f"  FAILED  {job.title}: {job.outcome} (traceback: {job.path.with_suffix(FAILED)})")
            continue
        record = read_record(job.path)
        result = record["results"][job.config.protocol.name][record["metric"]]
        seconds = record["cost"]["total_seconds"]
        print(f"  {result:8.4f}  {record['metric']}  {job.title}  ({seconds:.0f} s, {job.outcome})")
    failed = sum(job.failed for job in jobs)
    if failed:
        raise InputError(f"{failed} of {len(jobs)} jobs failed; the others are recorded")
