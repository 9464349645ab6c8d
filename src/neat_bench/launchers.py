"""Where a sweep's jobs run: processes of this machine, Slurm (both through submitit), or Ray.

A job told of its preemption or time limit saves a checkpoint and is put back into the queue; it then goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from neat_bench.config import CONFIGS, Config, LauncherSettings, build, compose
from neat_bench.errors import InputError, StoppedBySignal
from neat_bench.experiment import path_of, run
from neat_bench.results.store import write_failure

ENTRY = CONFIGS.parent / "run.py"


def _leave(number: int, _: Any) -> NoReturn:
    sys.exit(128 + number)


@dataclass(frozen=True)
class RunJob:
    """Runs one job in the process it is called in; submitit asks `checkpoint` for what goes on after a preemption."""

    settings: LauncherSettings

    def __call__(self, overrides: list[str], config_dirs: list[str]) -> str | None:
        """Run; return the line that says what was wrong, if anything. A failure leaves its traceback as a file."""
        warned = signal.getsignal(signal.SIGUSR2)  # submitit's, which puts the job back into the queue
        signal.signal(signal.SIGTERM, _leave)  # while nothing is trained there is nothing to save
        path = None
        try:
            config = build(compose(overrides, config_dirs))
            path = path_of(config)
            if self.settings.processes > 1:
                self._launch(overrides, config_dirs)
            else:
                run(config, overrides)
        except StoppedBySignal as stopped:
            if stopped.number in (signal.SIGUSR1, signal.SIGUSR2) and callable(warned):
                warned(signal.SIGUSR2, None)
            return str(stopped)
        except Exception as error:
            if path is not None:
                write_failure(path, overrides, traceback.format_exc())
            if isinstance(error, InputError):
                return str(error)
            raise
        return None

    def checkpoint(self, *arguments: Any) -> Any:
        """Return the job as submitit is to run it again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)

    def _launch(self, overrides: list[str], config_dirs: list[str]) -> None:
        """Run the job in several processes; hand signals on to them."""
        file = self.settings.accelerate_config or str(CONFIGS / "accelerate" / "ddp.yaml")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file]
        command += ["--num_processes", str(self.settings.processes), str(ENTRY), *overrides]
        if config_dirs:
            command.append(f"hydra.searchpath=[{','.join(config_dirs)}]")
        process = subprocess.Popen(command)
        told: list[int] = []

        def hand_on(number: int, _: Any) -> None:
            told.append(number)
            process.terminate()

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if told:
            raise StoppedBySignal(told[0])
        if code:
            raise InputError(f"accelerate launch ended with {code}: the log of the job says why")


class Handle(Protocol):
    """A job that was submitted."""

    def done(self) -> bool: ...  # noqa: D102
    def problem(self) -> str | None: ...  # noqa: D102  (of a job that is done: None if it went well)
    def printed(self) -> str: ...  # noqa: D102
    def stop(self) -> None: ...  # noqa: D102  (with a checkpoint, where it trains)
    def kill(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class SubmititHandle:
    """A job of submitit's local or Slurm executor."""

    job: Any

    def done(self) -> bool:
        """Say whether it has ended."""
        return self.job.done()

    def problem(self) -> str | None:
        """Return what went wrong in one line, None if nothing did."""
        error = self.job.exception()
        if error is None:
            return self.job.result()
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return f"{last} (log: {self.job.paths.stderr})"

    def printed(self) -> str:
        """Return its output so far."""
        log = Path(self.job.paths.stdout)
        return log.read_text(errors="replace") if log.exists() else ""

    def stop(self) -> None:
        """Tell it to save a checkpoint and end."""
        process = getattr(self.job, "_process", None)
        if process is None:
            self.job.cancel(check=False)
        else:  # the local controller hands SIGTERM on, where cancel() kills after a second
            process.terminate()

    def kill(self) -> None:
        """End it and all its processes at once."""
        process = getattr(self.job, "_process", None)
        if process is None:
            self.job.cancel(check=False)
            return
        import psutil

        try:
            controller = psutil.Process(process.pid)
            family = [controller, *controller.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in family:
            with suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
                member.kill()


@dataclass(frozen=True)
class RayHandle:
    """A task of Ray."""

    reference: Any

    def done(self) -> bool:
        """Say whether it has ended."""
        import ray

        return bool(ray.wait([self.reference], timeout=0)[0])

    def problem(self) -> str | None:
        """Return what went wrong in one line, None if nothing did."""
        import ray

        try:
            return ray.get(self.reference)
        except Exception as error:  # whatever the task raised, or Ray's own word on a lost worker
            return (str(error).strip().splitlines() or [type(error).__name__])[-1]

    def printed(self) -> str:
        """Return nothing: Ray forwards what its tasks print."""
        return ""

    def stop(self) -> None:
        """Interrupt it."""
        import ray

        ray.cancel(self.reference)

    def kill(self) -> None:
        """End it at once."""
        import ray

        ray.cancel(self.reference, force=True)


Submit = Callable[[list[str], list[str], int | None], Handle]  # (overrides, config folders, device) -> handle


def _through_submitit(config: Config) -> Submit:
    import submitit

    settings = config.launcher
    folder = Path(config.paths.logs) / "jobs"

    def submit(overrides: list[str], config_dirs: list[str], device: int | None) -> Handle:
        executor = submitit.AutoExecutor(folder=folder, cluster=settings.name)
        options: dict[str, Any] = {"timeout_min": round(settings.hours * 60), "name": "neat_bench"}
        if settings.name == "slurm":
            options |= {
                "gpus_per_node": settings.gpus,
                "cpus_per_task": settings.cpus,
                "mem_gb": settings.memory_gb,
                "slurm_signal_delay_s": settings.warning_seconds,
                "slurm_additional_parameters": {"requeue": True, "open-mode": "append"},
            }
            if settings.partition:
                options["slurm_partition"] = settings.partition
        elif device is not None:
            options |= {"gpus_per_node": 1, "local_visible_gpus": (device,)}
        executor.update_parameters(**options)
        # a job inherits that it ignores Ctrl-C: its controller would kill it before it could save
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return SubmititHandle(executor.submit(RunJob(settings), overrides, config_dirs))
        finally:
            signal.signal(signal.SIGINT, before)

    return submit


def _through_ray(config: Config) -> Submit:
    try:
        import ray
    except ImportError:
        raise InputError("launcher=ray needs Ray: pip install ray") from None
    settings = config.launcher
    if not ray.is_initialized():
        # a worker on this machine finds this checkout, installed or not
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CONFIGS.parent / "src"), os.environ.get("PYTHONPATH", "")])
        ray.init(include_dashboard=False)
    # a worker of its own for each job, which comes again when its machine is taken away
    task = ray.remote(max_calls=1, max_retries=3, num_cpus=settings.cpus, num_gpus=settings.gpus)(_ray_task)

    def submit(overrides: list[str], config_dirs: list[str], device: int | None) -> Handle:
        return RayHandle(task.remote(settings, overrides, config_dirs, os.getcwd()))

    return submit


def _ray_task(settings: LauncherSettings, overrides: list[str], config_dirs: list[str], folder: str) -> str | None:
    os.chdir(folder)
    return RunJob(settings)(overrides, config_dirs)


def submitter(config: Config) -> Submit:
    """Return what submits the jobs of a sweep; raises InputError where its launcher is not there."""
    return _through_ray(config) if config.launcher.name == "ray" else _through_submitit(config)
