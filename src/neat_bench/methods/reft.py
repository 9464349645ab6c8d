"""LoReFT and DiReFT: low-rank edits of hidden states at chosen tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.base import Method
from neat_bench.methods.checks import check_at_least_one
from neat_bench.methods.hidden import Context, HiddenEdit, edit_output
from neat_bench.models.roles import Place, hidden_size

POSITIONS = ("first", "last", "all")


class ReFTEdit(HiddenEdit):
    """R: r x d with orthonormal rows, W: r x d and b: r of one block; see ReFT."""

    def __init__(self, size: int, rank: int, direct: bool, positions: str, count: int, context: Context) -> None:
        super().__init__()
        self.basis = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, size)))
        self.W = nn.Linear(size, rank)
        self.direct, self.positions, self.count = direct, positions, count
        self.context = context

    def rows(self) -> Tensor:
        """Return R, r x d: the basis with its rows made orthonormal.

        By QR, not torch's orthogonal parametrisation: that one (Householder's) loses rows as soon as weight decay
        moves its diagonal below one.
        """
        Q, triangle = torch.linalg.qr(self.basis.t())
        return (Q * triangle.diagonal().sign()).t()

    def chosen(self, hidden: Tensor) -> Tensor | None:
        """Return which tokens are edited (batch x tokens), None for all; padding is neither first nor last.

        In generation the tokens after the prompt are not edited, but for positions=all.
        """
        if self.positions == "all":
            return None
        tokens = hidden.shape[1]
        mask = self.context.mask
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        if self.positions == "first":
            return ((mask.cumsum(1) <= self.count) & mask.bool())[:, -tokens:]
        if tokens < mask.shape[1]:
            return torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return (mask.flip(1).cumsum(1).flip(1) <= self.count) & mask.bool()

    def forward(self, hidden: Tensor) -> Tensor:
        """Return h + R^T (W h + b - R h), or without R h for DiReFT, at the chosen tokens."""
        R = self.rows()
        towards = self.W(hidden) if self.direct else self.W(hidden) - hidden @ R.t()
        edited = hidden + towards @ R
        chosen = self.chosen(hidden)
        return edited if chosen is None else torch.where(chosen[..., None], edited, hidden)


@dataclass(kw_only=True)
class ReFT(Method):
    """LoReFT (arXiv 2404.03592): h + R^T (W h + b - R h) on the output of each chosen block; R R^T = I.

    direct (DiReFT): h + R^T (W h + b). positions: the first or last `count` tokens of a row, or all. Cannot be
    merged. Initialisation: R random orthonormal, W and b as torch's Linear (the released start), so step 0 changes
    the output. Parameters per block: 2 r d + r.
    """

    size = "rank"
    starts_at_pretrained = False
    rank: int = 4
    direct: bool = False
    positions: str = "all"
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank, count=self.count)
        if self.positions not in POSITIONS:
            raise InputError(f"method.positions is one of {', '.join(POSITIONS)}, not '{self.positions}'")
        if self.targets != ["block"]:
            raise InputError(f"method.targets of {self.name} is [block]")

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Edit every chosen block's output."""
        context, size = Context(model), hidden_size(model)
        if self.rank > size:
            raise InputError(f"method.rank={self.rank} is larger than the model's hidden size {size}")
        for place in places:
            edit_output(place.module, ReFTEdit(size, self.rank, self.direct, self.positions, self.count, context))
