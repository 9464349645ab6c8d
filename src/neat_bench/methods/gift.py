"""GIFT: one pair of factors a role, shared by all layers, that edits the frozen weight from the input side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, Face, adapt, weight_at
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one, check_rank
from neat_bench.models.roles import Place


class GIFTMap(AdaptedMap):
    """The role's factors at one place, P: r x in and Q: in x r; see GIFT."""

    def __init__(self, P: nn.Parameter, Q: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.P, self.Q, self.scale = P, Q, scale

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + s W0 P^T Q^T."""
        return weight + self.scale * (weight @ self.P.t().to(weight.dtype)) @ self.Q.t().to(weight.dtype), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply the frozen layer once, to x + s (x Q) P."""
        return linear(x + self.scale * (x @ self.Q.to(x.dtype)) @ self.P.to(x.dtype))


@dataclass(kw_only=True)
class GIFT(MapMethod):
    """GIFT (arXiv 2312.00700, its simple block): dW = s W0 P^T Q^T, one P: r x in, Q: in x r for a role's layers.

    Initialisation: P Kaiming uniform (a = sqrt 5), Q zero, so step 0 changes nothing. Parameters for the whole
    model: 2 in r a role. It is the twin of NEAT with identity activation on the output side.
    """

    size = "rank"
    rank: int = 16
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank)

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Make the factors of each role and put them at all its places."""
        shared: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for place in places:
            weight = weight_at(place, self.name)
            check_rank(self.rank, place, weight)
            inputs = weight.shape[1]
            if place.role not in shared:
                drawn = nn.init.kaiming_uniform_(torch.empty(self.rank, inputs), a=math.sqrt(5))
                # where they are to stay: parameters that move to the meta device are no longer shared
                there = weight.device
                P, Q = nn.Parameter(drawn.to(there)), nn.Parameter(torch.zeros(inputs, self.rank, device=there))
                shared[place.role] = P, Q
            P, Q = shared[place.role]
            if P.shape[1] != inputs:
                raise InputError(f"{self.name} shares factors over a role's layers; {place.path} has another width")
            adapt(model, place, GIFTMap(P, Q, self.scale))
