"""LoRTA: one low-rank tensor for all layers, matrices and heads of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, Face, adapt, weight_at
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.models.roles import Place

ROLES = ("query", "key", "value", "output")


class LoRTAMap(AdaptedMap):
    """The tensor's slice of one place; see LoRTA."""

    def __init__(self, factors: dict[str, nn.Parameter], layer: int, matrix: int, scale: float) -> None:
        super().__init__()
        self.A, self.B, self.heads = factors["A"], factors["B"], factors["heads"]
        self.matrices, self.layers = factors["matrices"], factors["layers"]
        self.layer, self.matrix, self.scale = layer, matrix, scale

    def _up(self) -> Tensor:
        """Return the rows of all heads, d x r: head t's are B^T diag(Ch_t * Cm * Cl)."""
        mixed = self.heads * self.matrices[self.matrix] * self.layers[self.layer]  # h x r
        return torch.einsum("hr,rk->hkr", mixed, self.B).reshape(-1, self.B.shape[0])

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + s dW."""
        return weight + (self.scale * self._up() @ self.A.t()).to(weight.dtype), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b + s (x A) up^T."""
        return low_rank_linear(x, linear, self.A.t(), self._up(), self.scale)


@dataclass(kw_only=True)
class LoRTA(MapMethod):
    """LoRTA (arXiv 2410.04060): layer l, matrix m, head t: dW^T (d x d/h) = s A diag(Ch_t * Cm_m * Cl_l) B.

    A: d x r, B: r x d/h, Ch: h x r, Cm: 4 x r, Cl: L x r are shared by the whole model; s = alpha / r. Square query,
    key, value and output matrices only: grouped-query attention is an error. Initialisation: B zero, so step 0
    changes nothing, the others Kaiming uniform, A's range times init_scale. Parameters for the whole model:
    r (d + d/h + h + 4 + L).
    """

    size = "rank"
    rank: int = 64
    alpha: float = 64.0
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank)
        if not set(self.targets) <= set(ROLES):
            raise InputError(f"method.targets of {self.name} are among {', '.join(ROLES)}")

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Make the shared factors and put their slices at every place."""
        config: Any = getattr(model, "config", None)
        heads = getattr(config, "num_attention_heads", None) or _timm_heads(model)
        d = weight_at(places[0], self.name).shape[1]
        for place in places:
            if weight_at(place, self.name).shape != (d, d):
                shape = " x ".join(map(str, weight_at(place, self.name).shape))
                raise InputError(
                    f"{self.name} needs query, key, value and output matrices of one square size; {place.path} is "
                    f"{shape} (grouped-query attention does not fit)"
                )
        layers = max(place.layer for place in places) + 1
        shapes = {"A": (d, self.rank), "B": (self.rank, d // heads), "heads": (heads, self.rank),
                  "matrices": (len(ROLES), self.rank), "layers": (layers, self.rank)}  # fmt: skip
        drawn = {name: torch.zeros(shape) for name, shape in shapes.items()}
        for name, factor in drawn.items():
            if name != "B":
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        drawn["A"] *= self.init_scale
        # where they are to stay: parameters that move to the meta device are no longer shared
        there = weight_at(places[0], self.name).device
        factors = {name: nn.Parameter(factor.to(there)) for name, factor in drawn.items()}
        for place in places:
            adapt(model, place, LoRTAMap(factors, place.layer, ROLES.index(place.role), self.alpha / self.rank))


def _timm_heads(model: nn.Module) -> int:
    return int(model.blocks[0].attn.num_heads)  # type: ignore[index, union-attr]
