"""Checkpoints of a run: written whole, read only if whole, and nothing in them but tensors and JSON.

<folder>/step-<n>/ holds state.safetensors and progress.json, which carries the former's sha256.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neat_bench.files import sha256_of_file, write_folder_whole
from neat_bench.training.settings import CheckpointSettings

TENSORS, FACTS = "state.safetensors", "progress.json"
KEPT = 2  # the newest, and one to fall back on
# the last two warn of a time limit or a preemption: Slurm's usual one, and submitit's
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Snapshot:
    """What a run needs to go on as if it had never stopped: the optimizer step, tensors by name, and plain facts."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix/`, without it."""
        return {n.removeprefix(f"{prefix}/"): value for n, value in self.tensors.items() if n.startswith(f"{prefix}/")}


@dataclass
class Checkpoints:
    """The checkpoints of one run, in a folder of its own."""

    folder: Path
    settings: CheckpointSettings
    resume: bool = True
    stopped_by: int | None = field(default=None, init=False)

    def due(self, step: int) -> bool:
        """Return whether to save after a step: it is time, or a signal has come."""
        every = self.settings.every
        return self.stopped_by is not None or (every is not None and step % every == 0)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def newest(self) -> Snapshot | None:
        """Return the newest whole checkpoint, None where there is none; a damaged one is named on stderr.

        Without `resume` the old ones are removed.
        """
        if not self.resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self._steps():
            try:
                return _read(folder)
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0]
                print(f"warning: checkpoint {folder} is damaged ({reason}); the one before is used", file=sys.stderr)
                shutil.rmtree(folder, ignore_errors=True)
        return None

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint whole, then drop all but the newest."""
        from safetensors.torch import save_file

        def write(folder: Path) -> None:
            # one tensor may stand under two names; the format holds each by itself
            tensors = {
                name: value.detach().to("cpu", copy=True).contiguous() for name, value in snapshot.tensors.items()
            }
            save_file(tensors, folder / TENSORS)
            facts = {"step": snapshot.step, "sha256": sha256_of_file(folder / TENSORS), "facts": snapshot.facts}
            (folder / FACTS).write_text(json.dumps(facts))

        write_folder_whole(self.folder / f"step-{snapshot.step:09d}", write)
        for folder in self._steps()[KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove the checkpoints of a finished run, unless they are to be kept."""
        if not self.settings.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Note signals inside rather than die of them; a second SIGINT ends the process at once."""

        def note(number: int, _: Any) -> None:
            if number == signal.SIGINT and self.stopped_by is not None:
                raise KeyboardInterrupt
            self.stopped_by = number

        try:
            before = {number: signal.signal(number, note) for number in STOPS}
        except ValueError:  # only the main thread may; elsewhere the process dies as it would
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _read(folder: Path) -> Snapshot:
    """Return the checkpoint in a folder; raises ValueError where its files are not those that were written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    written = json.loads((folder / FACTS).read_text())
    if sha256_of_file(folder / TENSORS) != written["sha256"]:
        raise ValueError(f"{TENSORS} is not the file that was written")
    try:
        return Snapshot(written["step"], load_file(folder / TENSORS), written["facts"])
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def random_state() -> dict[str, Tensor]:
    """Return the states of torch's generators on all devices."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    """Put the generators back to what `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([states[name] for name in sorted(states) if name.startswith("cuda")])


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's tensors by `parameter/name`, and its numbers and groups as plain data."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}/{name}"] = value
    groups = [{name: value for name, value in group.items() if name != "params"} for group in state["param_groups"]]
    return tensors, {"numbers": numbers, "groups": groups}


def set_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Put an optimizer of the same parameters back to what `optimizer_state` returned."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (tensors | facts["numbers"]).items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    for group, kept in zip(groups, facts["groups"], strict=True):
        # JSON has no tuples
        group |= {name: tuple(value) if isinstance(group[name], tuple) else value for name, value in kept.items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
