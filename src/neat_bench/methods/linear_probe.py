"""Linear probing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neat_bench.methods.base import Method
from neat_bench.models.roles import Place


@dataclass(kw_only=True)
class LinearProbe(Method):
    """Only the task head trains, on the frozen model's features. Parameters: the head's."""

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Leave the backbone frozen."""
