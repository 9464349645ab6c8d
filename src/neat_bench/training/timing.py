"""What training cost in time, and how much it saw."""

from __future__ import annotations

import time
from dataclasses import dataclass

COUNTS = ("seconds", "steps", "items", "tokens")


@dataclass
class Timing:
    """What training cost: seconds of training (data waiting in, evaluation out), steps, items and input tokens."""

    seconds: float = 0.0
    steps: int = 0
    items: int = 0
    tokens: int = 0
    _since: float = 0.0

    def start(self) -> None:
        """Start the clock; what passed since the last lap does not count."""
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Count the time since the last start or lap; the device's queue must be empty."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def counts(self) -> dict[str, float]:
        """Return the counts alone."""
        return {name: getattr(self, name) for name in COUNTS}

    def as_dict(self) -> dict[str, float]:
        """Return the counts and the rates made of them."""
        seconds = max(self.seconds, 1e-9)
        return {
            "train_seconds": self.seconds,
            "steps": self.steps,
            "items": self.items,
            "tokens": self.tokens,
            "seconds_per_step": self.seconds / max(self.steps, 1),
            "items_per_second": self.items / seconds,
            "tokens_per_second": self.tokens / seconds,
        }
