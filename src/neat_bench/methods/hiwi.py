"""HiWi: an adapter that reads a weight or bias instead of a hidden state, and is folded away afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, Face
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import ACTIVATIONS, check_activation, check_at_least_one
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.models.roles import Place


class HiWiMap(AdaptedMap):
    """The adapter of one place, down: m x n and up: n x m for a parameter whose rows have n entries; see HiWi."""

    def __init__(self, size: int, rank: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, size))
        self.up = nn.Parameter(torch.zeros(size, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.activation = ACTIVATIONS[activation]

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return f(rows W_d), rows x m, of a weight or of a bias as one row."""
        return self.activation(weight.to(self.down.dtype) @ self.down.t())


class HiWiWeightMap(HiWiMap):
    """W = W0 + f(W0 W_d) W_u."""

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the edited weight."""
        return weight + (self.of_weight(weight) @ self.up.t()).to(weight.dtype), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b + (x W_u^T) f(W0 W_d)^T."""
        return low_rank_linear(x, linear, self.up.t(), self.shared(linear), 1.0)


class HiWiBiasMap(HiWiMap):
    """b = b0 + f(b0 W_d) W_u."""

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the edited bias."""
        assert bias is not None
        return weight, bias + (self.of_weight(bias[None]) @ self.up.t())[0].to(bias.dtype)

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply the frozen layer and add what the bias gained."""
        assert linear.bias is not None
        return linear(x) + (self.of_weight(linear.bias[None]) @ self.up.t())[0].to(x.dtype)


@dataclass(kw_only=True)
class HiWi(MapMethod):
    """HiWi (arXiv 2305.16742): W = W0 + f(W0 W_d) W_u, or for biases b = b0 + f(b0 W_d) W_u.

    form: bias (the paper's headline: afterwards only the new biases are kept) or weight. Initialisation: W_u zero,
    so step 0 changes nothing; W_d Kaiming uniform and ReLU are the plainest reading, the paper's code is not public.
    Parameters per place: 2 m n with n the bias's (form bias) or the weight's input size.
    """

    size = "rank"
    rank: int = 8
    form: str = "bias"
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank)
        if self.form not in ("bias", "weight"):
            raise InputError(f"method.form is bias or weight, not '{self.form}'")
        check_activation(self.activation)

    def make_map(self, place: Place, weight: Tensor) -> HiWiMap:
        """Return the adapter of one place."""
        if self.form == "weight":
            return HiWiWeightMap(weight.shape[1], self.rank, self.activation)
        if getattr(place.module, "bias", None) is None:
            raise InputError(
                f"{self.name} with form=bias edits biases, and {place.path} has none: try method.form=weight"
            )
        return HiWiBiasMap(weight.shape[0], self.rank, self.activation)
