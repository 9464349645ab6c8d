"""Powerpropagation: weights as powers, so that training makes small ones smaller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, adapted_maps
from neat_bench.methods.base import MapMethod
from neat_bench.methods.sparse import check_densities, when_pruned
from neat_bench.models.roles import Place


class PowerpropMap(AdaptedMap):
    """The root t of one weight, out x in; see Powerprop."""

    def __init__(self, weight: Tensor, power: float) -> None:
        super().__init__()
        root = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        self.root = nn.Parameter(root.sign() * root.abs() ** (1 / power))
        self.power = power

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return t |t|^(a - 1), in place of the frozen weight."""
        return (self.root * self.root.abs() ** (self.power - 1)).to(weight.dtype), bias


@dataclass(kw_only=True)
class Powerprop(MapMethod):
    """Powerpropagation (arXiv 2110.00296): W = t |t|^(a - 1), every entry of the targets trains.

    Initialisation: t = sign(W0) |W0|^(1 / a), so step 0 changes nothing up to rounding. Small weights get small
    gradients, so magnitude pruning afterwards costs less; train it without weight decay. Parameters per matrix:
    in out.
    densities: the record's `method` field holds the metrics after the last step with only these shares of the
    targets' entries left, the largest ones; method=full has the same field, to compare with.
    """

    power: float = 2.0
    densities: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power < 1:
            raise InputError(f"method.power is at least 1, not {self.power}")
        check_densities(self.densities)

    def make_map(self, place: Place, weight: Tensor) -> PowerpropMap:
        """Return the root of one weight."""
        return PowerpropMap(weight, self.power)

    def report(self, model: nn.Module, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the metrics at each density; roots are in the order of their weights."""
        roots: list[Tensor] = [adapted.root for adapted in adapted_maps(model, PowerpropMap)]
        return {"pruned": when_pruned(roots, self.densities, measure)} if self.densities else {}
