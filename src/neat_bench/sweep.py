"""A sweep: every job in its own process, one a device; finished runs are skipped, failures do not spread.

submitit runs the processes: its local executor behind a queue of devices here, Slurm on a cluster.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from neat_bench.config import Config, LauncherSettings, build, compose
from neat_bench.errors import InputError
from neat_bench.experiment import path_of, run
from neat_bench.results.store import read_record, stored

POLL_SECONDS = 0.2
RECORDED, ALREADY_RECORDED = "recorded", "already recorded"


def run_job(overrides: list[str], config_dirs: list[str]) -> str | None:
    """Run one job in this process; return the line that says what was wrong with the input, if anything."""
    try:
        run(build(compose(overrides, config_dirs)), overrides)
    except InputError as error:
        return str(error)
    return None


@dataclass
class Job:
    """One cell of a sweep and what became of it."""

    overrides: list[str]
    config: Config
    path: Path
    process: Any = None
    device: int | None = None
    started: float = 0.0
    outcome: str = ""  # RECORDED, ALREADY_RECORDED or what went wrong
    shown: int = field(default=0, repr=False)

    @property
    def title(self) -> str:
        """Method, data set, model and seed."""
        config = self.config
        return f"{config.method.name}  {config.dataset.name}  {config.model.name}  seed {config.seed}"

    @property
    def failed(self) -> bool:
        """Whether the job ended without a record."""
        return self.outcome not in (RECORDED, ALREADY_RECORDED)


def plan(job_overrides: Sequence[Sequence[str]], composed: Sequence[DictConfig]) -> list[Job]:
    """Check every job's composed config before the first one runs; jobs that would write one record are one job."""
    jobs: dict[Path, Job] = {}
    for overrides, job_config in zip(job_overrides, composed, strict=True):
        with open_dict(job_config):
            job_config.pop("hydra")
        config = build(job_config)
        path = path_of(config)
        jobs.setdefault(path, Job(list(overrides), config, path))
    return list(jobs.values())


def run_sweep(jobs: list[Job], config_dirs: list[str]) -> None:
    """Run all jobs, show their progress, print a summary; raises InputError if any failed."""
    settings = jobs[0].config.launcher
    waiting = []
    for job in jobs:
        if stored(job.path) is not None and not job.config.rerun:
            job.outcome = ALREADY_RECORDED
        else:
            waiting.append(job)
    print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} already recorded (rerun=true repeats them)", flush=True)
    devices: list[int | None] = list(_devices(settings))
    running: list[Job] = []
    total, number = len(waiting), 0
    try:
        while waiting or running:
            while waiting and (devices or settings.name == "slurm"):
                job = waiting.pop(0)
                number += 1
                job.device = devices.pop(0) if settings.name == "local" else None
                job.process = _submit(job, settings, config_dirs)
                job.started = time.monotonic()
                running.append(job)
                print(f"[{number}/{total}] {job.title}", flush=True)
            for job in [job for job in running if _ended(job)]:
                running.remove(job)
                if settings.name == "local":
                    devices.append(job.device)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        for job in running:
            job.process.cancel()
        raise
    _summarise(jobs)


def _devices(settings: LauncherSettings) -> Sequence[int | None]:
    """Return the devices of this machine: GPU indices, or as many None as jobs may run at a time."""
    import torch

    gpus = torch.cuda.device_count()
    count = settings.devices or max(gpus, 1)
    return [index % gpus if gpus else None for index in range(count)]


def _submit(job: Job, settings: LauncherSettings, config_dirs: list[str]) -> Any:
    """Start a job through submitit and return its handle."""
    import submitit

    folder = Path(job.config.paths.logs) / "jobs"
    executor = submitit.AutoExecutor(folder=folder, cluster=settings.name)
    options: dict[str, Any] = {"timeout_min": round(settings.hours * 60), "name": "neat_bench"}
    if settings.name == "slurm":
        options |= {
            "gpus_per_node": settings.gpus,
            "cpus_per_task": settings.cpus,
            "mem_gb": settings.memory_gb,
        }
        if settings.partition:
            options["slurm_partition"] = settings.partition
    elif job.device is not None:
        options |= {"gpus_per_node": 1, "local_visible_gpus": (job.device,)}
    executor.update_parameters(**options)
    return executor.submit(run_job, job.overrides, config_dirs)


def _ended(job: Job) -> bool:
    """Show what the job has printed since the last look; if it has ended, note its outcome."""
    done = job.process.done()
    log = Path(job.process.paths.stdout)
    if log.exists():
        text = log.read_text(errors="replace")
        for line in text[job.shown :].splitlines():
            if line.strip() and not line.startswith("submitit"):
                print(f"    {line}", flush=True)
        job.shown = len(text)
    if not done:
        return False
    error = job.process.exception()
    if error is None:
        job.outcome = job.process.result() or RECORDED
    else:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        job.outcome = f"{last} (traceback: {job.process.paths.stderr})"
    if job.failed:
        print(f"    failed: {job.outcome}", file=sys.stderr, flush=True)
    return True


def _summarise(jobs: list[Job]) -> None:
    """Print one line a job; raise InputError if any failed."""
    print("\nsummary")
    for job in jobs:
        if job.failed:
            print(f"  FAILED  {job.title}: {job.outcome}")
            continue
        record = read_record(job.path)
        result = record["results"][job.config.protocol.name][record["metric"]]
        seconds = record["cost"]["total_seconds"]
        print(f"  {result:8.4f}  {record['metric']}  {job.title}  ({seconds:.0f} s, {job.outcome})")
    failed = sum(job.failed for job in jobs)
    if failed:
        raise InputError(f"{failed} of {len(jobs)} jobs failed; the others are recorded")
