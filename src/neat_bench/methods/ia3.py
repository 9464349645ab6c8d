"""IA3: learned factors on keys, values and the feed-forward's inner activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.methods.adapted import AdaptedMap, Face
from neat_bench.methods.base import MapMethod
from neat_bench.models.roles import Place


class IA3OutputMap(AdaptedMap):
    """Factors on a map's output."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(size))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return l W0 and l b."""
        return self.factors[:, None] * weight, None if bias is None else self.factors * bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply l (x W0^T + b)."""
        return linear(x) * self.factors.to(x.dtype)


class IA3InputMap(IA3OutputMap):
    """Factors on a map's input."""

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 diag(l)."""
        return weight * self.factors, bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply (x l) W0^T + b."""
        return linear(x * self.factors.to(x.dtype))


@dataclass(kw_only=True)
class IA3(MapMethod):
    """IA3 (arXiv 2205.05638): keys, values and the feed-forward's inner activations times learned vectors.

    mlp_down's input is the inner activation; every other target's output is scaled. Initialisation: ones, so step 0
    changes nothing. Parameters per place: out, or in for mlp_down.
    """

    def make_map(self, place: Place, weight: Tensor) -> IA3OutputMap:
        """Return the factors for one place."""
        return IA3InputMap(weight.shape[1]) if place.role == "mlp_down" else IA3OutputMap(weight.shape[0])
