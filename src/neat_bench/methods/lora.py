"""LoRA: a low-rank update beside the frozen weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.methods.adapted import AdaptedMap, Face
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one, check_dropout, check_rank
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.models.roles import Place


class LoRAMap(AdaptedMap):
    """The two factors of one place; see LoRA."""

    def __init__(self, weight: Tensor, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        out, inputs = weight.shape
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + s B A."""
        return weight + self.scale * (self.B @ self.A), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b + s (x A^T) B^T."""
        return low_rank_linear(x, linear, self.A, self.B, self.scale, self.dropout)


@dataclass(kw_only=True)
class LoRA(MapMethod):
    """LoRA (arXiv 2106.09685): W = W0 + s B A, A: r x in, B: out x r, s = alpha / r.

    rank_stabilised (rsLoRA, arXiv 2312.03732) takes s = alpha / sqrt(r). Initialisation: A Kaiming uniform
    (a = sqrt 5), B zero, so step 0 changes nothing. Parameters per matrix: r (in + out).
    dropout acts on the adapter's input x.
    """

    size = "rank"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank)
        check_dropout(self.dropout)

    @property
    def scale(self) -> float:
        """The factor s."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def make_map(self, place: Place, weight: Tensor) -> LoRAMap:
        """Return the factors for one place."""
        check_rank(self.rank, place, weight)
        return LoRAMap(weight, self.rank, self.scale, self.dropout)
