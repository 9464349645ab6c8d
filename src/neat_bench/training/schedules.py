"""Learning-rate schedules by transformers, with the warm-up as a share of all steps or as a count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neat_bench.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(kw_only=True)
class Schedule:
    """Warm-up from 0, then linear or cosine decay to 0, or constant.

    warmup_steps, where given, wins over warmup_ratio (the share of all optimizer steps, rounded up).
    """

    name: str
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise InputError(f"unknown scheduler.name '{self.name}'{nearest(self.name, SCHEDULES)}")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"scheduler.warmup_ratio lies in [0, 1], not {self.warmup_ratio}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise InputError(f"scheduler.warmup_steps is not negative; got {self.warmup_steps}")

    def build(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the schedule over `steps` optimizer steps."""
        from transformers import get_scheduler

        warmup = math.ceil(self.warmup_ratio * steps) if self.warmup_steps is None else self.warmup_steps
        name = "constant_with_warmup" if self.name == "constant" else self.name
        return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
