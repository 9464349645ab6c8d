"""A small run with stored losses: it notices when a dependency moves the numbers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from neat_bench.config import build, compose
from neat_bench.experiment import run

STORED = Path(__file__).with_name("canary.json")
TOLERANCE = 2e-4  # between machines; on one machine the losses are the same to the bit
OVERRIDES = ("trainer=check", "trainer.evaluate_every=1", "trainer.device=cpu", "logger=none", "scheduler=constant")


def read_stored() -> dict[str, Any]:
    """Return `losses` (method -> the first training losses on the embedded default) and the `packages` behind them."""
    return json.loads(STORED.read_text())


def measure(method: str) -> tuple[list[float], dict[str, str]]:
    """Return a method's first training losses here, and the versions of the packages."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"paths.{name}={folder}/{name}" for name in ("results", "cache", "logs")]
        record = run(build(compose([f"method={method}", *OVERRIDES, *paths])), [])
    return [scores["train_loss"] for scores in record["history"]], record["environment"]["packages"]


def moved(losses: list[float], stored: list[float]) -> float:
    """Return the largest distance between two series of losses; infinite where their lengths differ."""
    if len(losses) != len(stored):
        return float("inf")
    return max(abs(ours - theirs) for ours, theirs in zip(losses, stored, strict=True))
