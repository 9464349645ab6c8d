"""VeRA: frozen random factors shared by all layers, and two small vectors a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.methods.adapted import AdaptedMap, Face, adapt, weight_at
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one, check_dropout
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.models.roles import Place


class VeRAMap(AdaptedMap):
    """The two vectors of one place, beside the shared factors; see VeRA."""

    def __init__(self, A: nn.Parameter, B: nn.Parameter, weight: Tensor, d_initial: float, dropout: float) -> None:
        super().__init__()
        self.A, self.B = A, B
        self.d = nn.Parameter(torch.full((A.shape[0],), d_initial))
        self.b = nn.Parameter(torch.zeros(weight.shape[0]))
        self.dropout = nn.Dropout(dropout)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Return diag(d) A, r x in, and diag(b) B, out x r, of the place's own size."""
        return self.d[:, None] * self.A, self.b[:, None] * self.B[: len(self.b)]

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + diag(b) B diag(d) A."""
        A, B = self._factors()
        return weight + B @ A[:, : weight.shape[1]], bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b0 + (x (diag(d) A)^T) (diag(b) B)^T."""
        A, B = self._factors()
        return low_rank_linear(x, linear, A[:, : x.shape[-1]], B, 1.0, self.dropout)


@dataclass(kw_only=True)
class VeRA(MapMethod):
    """VeRA (arXiv 2310.11454): dW = diag(b) B diag(d) A; A: r x in and B: out x r are random and frozen.

    One pair for the whole model, drawn Kaiming uniform from projection_seed; a smaller matrix takes their leading
    rows and columns. Initialisation: b zero, d d_initial, so step 0 changes nothing. Parameters per matrix: r + out.
    """

    size = "rank"
    rank: int = 256
    d_initial: float = 0.1
    projection_seed: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank)
        check_dropout(self.dropout)

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Draw the shared factors and put the vectors at every place."""
        weights = [weight_at(place, self.name) for place in places]
        generator = torch.Generator().manual_seed(self.projection_seed)
        device = weights[0].device
        shapes = (
            (self.rank, max(weight.shape[1] for weight in weights)),
            (max(weight.shape[0] for weight in weights), self.rank),
        )
        A, B = (
            nn.Parameter(
                nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator).to(device),
                requires_grad=False,
            )
            for shape in shapes
        )
        for place, weight in zip(places, weights, strict=True):
            adapt(model, place, VeRAMap(A, B, weight, self.d_initial, self.dropout))
