"""PST: pruning while tuning, with low-rank weights and low-rank scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, adapted_maps, layers_of
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_rank
from neat_bench.models.roles import Place


class PSTMap(AdaptedMap):
    """The update and the scores of one place; see PST."""

    sparsity: Tensor

    def __init__(self, weight: Tensor, rank: int, alpha1: float, alpha2: float) -> None:
        super().__init__()
        out, inputs = weight.shape
        self.U, self.V = nn.Parameter(torch.randn(out, rank) * 0.02), nn.Parameter(torch.zeros(rank, inputs))
        self.A, self.B = nn.Parameter(torch.randn(out, rank) * 0.02), nn.Parameter(torch.zeros(rank, inputs))
        self.R, self.C = nn.Parameter(torch.zeros(out, 1)), nn.Parameter(torch.zeros(1, inputs))
        self.alpha1, self.alpha2 = alpha1, alpha2
        self.register_buffer("sparsity", torch.zeros(()))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return (W0 + U V) without the entries of lowest score; the mask passes its gradient to the scores."""
        whole = weight + self.U @ self.V
        scores = whole.abs().detach() + self.alpha1 * self.A @ self.B + self.alpha2 * (self.R + self.C)
        dropped = int(self.sparsity.item() * whole.numel())
        if dropped == 0:
            mask = torch.ones_like(scores)
        else:
            mask = (scores > scores.detach().flatten().kthvalue(dropped).values).to(scores.dtype)
        return whole * (mask + scores - scores.detach()), bias


@dataclass(kw_only=True)
class PST(MapMethod):
    """PST (arXiv 2205.11005): W = (W0 + U V) * mask, the mask keeping the entries of highest score.

    Scores: |W0 + U V| + alpha1 A B + alpha2 (R_row + C_column), straight through the mask. The share dropped rises
    from zero to `sparsity` by a cubic schedule between the shares `start` and `end` of all steps. Merging gives a
    truly sparse matrix. Initialisation: U, A normal 0.02, V, B, R, C zero, and nothing dropped, so step 0 changes
    nothing. Parameters per matrix: 2 r (in + out) + in + out.
    """

    size = "rank"
    rank: int = 8
    sparsity: float = 0.5
    start: float = 0.1
    end: float = 0.7
    alpha1: float = 1.0
    alpha2: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or not 0 <= self.sparsity < 1:
            raise InputError("method.rank is at least 1 and method.sparsity lies in [0, 1)")
        if not 0 <= self.start < self.end <= 1:
            raise InputError("method.start lies below method.end, both shares of the steps")

    def make_map(self, place: Place, weight: Tensor) -> PSTMap:
        """Return update and scores for one place."""
        check_rank(self.rank, place, weight)
        return PSTMap(weight, self.rank, self.alpha1, self.alpha2)

    def share_at(self, step: int, total: int) -> float:
        """Return the share that is dropped after a step."""
        through = min(1.0, max(0.0, (step / total - self.start) / (self.end - self.start)))
        return self.sparsity * (1 - (1 - through) ** 3)

    def on_step(self, model: nn.Module, step: int, total: int) -> None:
        """Move the share that is dropped."""
        for adapted in adapted_maps(model, PSTMap):
            adapted.sparsity.fill_(self.share_at(step, total))

    @torch.no_grad()
    def report(self, model: nn.Module, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the share of zeros in the adapted matrices as they are merged."""
        merged = [adapted.merged(weight, None)[0] for _, _, adapted, weight in layers_of(model)]
        return {"sparsity": sum(int((w == 0).sum()) for w in merged) / sum(w.numel() for w in merged)}
