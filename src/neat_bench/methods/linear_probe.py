"""Linear probing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neat_bench.errors import InputError
from neat_bench.methods.base import Method
from neat_bench.models.roles import Place


@dataclass(kw_only=True)
class LinearProbe(Method):
    """Only the task head trains, on the frozen model's features. Parameters: the head's."""

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Leave the backbone frozen; raises InputError for a model without a task head."""
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(
                "linear_probe trains a task head, and a language model has none (method=untuned measures it)"
            )
