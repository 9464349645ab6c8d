"""Full fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import is_quantised
from neat_bench.methods.base import Method
from neat_bench.methods.sparse import check_densities, when_pruned
from neat_bench.models.roles import Place, architecture_of, find_places


@dataclass(kw_only=True)
class Full(Method):
    """Every parameter trains, from its pretrained value. Parameters: all.

    densities: the record's `method` field holds the metrics after the last step with only these shares of the
    entries of the blocks' matrices left, the largest ones.
    """

    densities: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_densities(self.densities)

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Let everything train."""
        if any(is_quantised(module) for module in model.modules()):
            raise InputError(
                f"{self.name} trains every weight, and this model's are quantised: model.quantization=null"
            )
        model.requires_grad_(True)

    def report(self, model: nn.Module, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the metrics at each density."""
        if not self.densities:
            return {}
        places = find_places(model, list(architecture_of(model).modules), None)
        weights = list(dict.fromkeys(place.module.weight for place in places))
        return {"pruned": when_pruned(weights, self.densities, measure)}  # type: ignore[arg-type]
