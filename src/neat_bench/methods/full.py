"""Full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neat_bench.methods.base import Method
from neat_bench.models.roles import Place


@dataclass(kw_only=True)
class Full(Method):
    """Every parameter trains, from its pretrained value. Parameters: all."""

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Let everything train."""
        model.requires_grad_(True)
