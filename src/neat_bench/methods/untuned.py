"""The pretrained model as it is: what every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neat_bench.methods.base import Method
from neat_bench.models.roles import Place


@dataclass(kw_only=True)
class Untuned(Method):
    """Nothing trains; the run evaluates once. A new task head keeps its random weights. Parameters: none."""

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Freeze everything."""
        model.requires_grad_(False)
