"""Where a run's numbers go while it runs: W&B, or nowhere."""

from __future__ import annotations

import netrc
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from neat_bench.errors import InputError, nearest
from neat_bench.secrets import redacted

MODES = ("auto", "online", "offline")


@dataclass(kw_only=True)
class Logger:
    """Logs nothing; the base of those that do."""

    name: str

    def start(self, run: str, group: str, tags: list[str], config: dict[str, Any], folder: str) -> None:
        """Begin a run of the given name, group, tags and plain config; local files go under folder."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Log values of an optimizer step."""

    def finish(self, summary: dict[str, Any]) -> None:
        """End the run with its final numbers."""


def has_key() -> bool:
    """Say whether a W&B key is configured in the environment or in the netrc file; nothing is asked."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@dataclass(kw_only=True)
class WandB(Logger):
    """Weights & Biases. mode auto is online where a key is configured, else offline; WANDB_MODE wins.

    A failure of W&B warns once and the run goes on without it.
    """

    project: str = "neat_bench"
    entity: str | None = None
    mode: str = "auto"
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"unknown logger.mode '{self.mode}'{nearest(self.mode, MODES)}")
        self._run: Any = None

    def _try(self, action: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the run (or wandb.init); on any failure warn and stop logging."""
        try:
            if action == "init":
                import wandb

                return wandb.init(*arguments, **options)
            return getattr(self._run, action)(*arguments, **options)
        except Exception as error:  # whatever W&B raises must not end a training run
            reason = (str(error).splitlines() or [""])[0]
            print(
                f"warning: W&B failed ({type(error).__name__}: {reason}); the run goes on without it",
                file=sys.stderr,
            )
            self._run = None
            return None

    def start(self, run: str, group: str, tags: list[str], config: dict[str, Any], folder: str) -> None:
        """Open a W&B run."""
        mode = self.mode if self.mode != "auto" else ("online" if has_key() else "offline")
        mode = os.environ.get("WANDB_MODE", mode)
        os.environ.setdefault("WANDB_SILENT", "true")
        os.makedirs(folder, exist_ok=True)
        self._run = self._try(
            "init",
            project=self.project, entity=self.entity, mode=mode, dir=folder,
            name=run, group=group, tags=[*tags, *self.tags], config=redacted(config),
        )  # fmt: skip

    def log(self, values: dict[str, float], step: int) -> None:
        """Log values of a step."""
        if self._run is not None:
            self._try("log", values, step=step)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary and close the run."""
        if self._run is not None:
            self._run.summary.update(redacted(summary))
            self._try("finish")
