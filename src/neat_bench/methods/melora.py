"""MELoRA: many small LoRAs on disjoint slices, together of a high rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, Face
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one, check_dropout
from neat_bench.models.roles import Place


class MELoRAMap(AdaptedMap):
    """The mini factors of one place, A: n x r x in/n and B: n x out/n x r; see MELoRA."""

    def __init__(self, weight: Tensor, rank: int, minis: int, scale: float, dropout: float) -> None:
        super().__init__()
        out, inputs = weight.shape
        self.A = nn.Parameter(torch.empty(minis, rank, inputs // minis))
        self.B = nn.Parameter(torch.zeros(minis, out // minis, rank))
        for mini in self.A.data:
            nn.init.kaiming_uniform_(mini, a=math.sqrt(5))
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + s blockdiag(B_i A_i)."""
        return weight + self.scale * torch.block_diag(*(self.B @ self.A)), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply each mini to its slice of the input, as one batched product."""
        minis = self.A.shape[0]
        slices = self.dropout(x).reshape(-1, minis, x.shape[-1] // minis).transpose(0, 1)  # n x tokens x in/n
        update = slices @ self.A.transpose(1, 2).to(x.dtype) @ self.B.transpose(1, 2).to(x.dtype)
        return linear(x) + self.scale * update.transpose(0, 1).reshape(*x.shape[:-1], -1)


@dataclass(kw_only=True)
class MELoRA(MapMethod):
    """MELoRA (arXiv 2402.17263): dW = s blockdiag(B_i A_i), n minis of rank r on disjoint slices; s = alpha / r.

    The update's rank is n r at the parameters of one LoRA of rank r. Initialisation: LoRA's, so step 0 changes
    nothing. Parameters per matrix: r (in + out).
    """

    size = "rank"
    rank: int = 4
    minis: int = 4
    alpha: float = 8.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank, minis=self.minis)
        check_dropout(self.dropout)

    def make_map(self, place: Place, weight: Tensor) -> MELoRAMap:
        """Return the minis for one place."""
        out, inputs = weight.shape
        if out % self.minis or inputs % self.minis:
            raise InputError(f"method.minis={self.minis} does not divide {place.path} ({out} x {inputs})")
        if self.rank > min(out, inputs) // self.minis:
            raise InputError(
                f"method.rank={self.rank} exceeds a slice of {place.path} ({out} x {inputs}) / {self.minis}"
            )
        return MELoRAMap(weight, self.rank, self.minis, self.alpha / self.rank, self.dropout)
