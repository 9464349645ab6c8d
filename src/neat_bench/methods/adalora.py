"""AdaLoRA: an update in singular-value form whose ranks move to the matrices that need them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, Face, adapted_maps
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one, check_dropout, check_rank
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.models.roles import Place

BETA = 0.85  # of both moving averages, as in the paper's code


class AdaLoRAMap(AdaptedMap):
    """P: out x r, e: r and Q: r x in of one place, with the importance of every entry; see AdaLoRA."""

    kept: Tensor

    def __init__(self, weight: Tensor, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.randn(weight.shape[0], rank) * 0.02)
        self.e = nn.Parameter(torch.zeros(rank))
        self.Q = nn.Parameter(torch.randn(rank, weight.shape[1]) * 0.02)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool))
        for name in ("P", "e", "Q"):  # moving averages of the sensitivity |w g| and of its deviation
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(getattr(self, name).data))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(getattr(self, name).data))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + s P diag(e) Q."""
        return weight + self.scale * (self.P * self.e) @ self.Q, bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b + s (x (diag(e) Q)^T) P^T."""
        return low_rank_linear(x, linear, self.e[:, None] * self.Q, self.P, self.scale, self.dropout)

    def penalty(self) -> Tensor:
        """Return ||P^T P - I|| + ||Q Q^T - I|| (Frobenius)."""
        one = torch.eye(len(self.e), device=self.e.device, dtype=self.e.dtype)
        return torch.linalg.norm(self.P.t() @ self.P - one) + torch.linalg.norm(self.Q @ self.Q.t() - one)

    @torch.no_grad()
    def observe(self) -> None:
        """Move the averages by the present weights and gradients."""
        for name in ("P", "e", "Q"):
            parameter = getattr(self, name)
            if parameter.grad is None:
                continue
            sensitivity, uncertainty = getattr(self, f"sensitivity_{name}"), getattr(self, f"uncertainty_{name}")
            found = (parameter * parameter.grad).abs()
            sensitivity.mul_(BETA).add_(found, alpha=1 - BETA)
            uncertainty.mul_(BETA).add_((found - sensitivity).abs(), alpha=1 - BETA)

    def scores(self) -> Tensor:
        """Return each triple's importance, r: that of e_i and the means over its column of P and row of Q."""
        P, e, Q = (getattr(self, f"sensitivity_{n}") * getattr(self, f"uncertainty_{n}") for n in ("P", "e", "Q"))
        return e + P.mean(dim=0) + Q.mean(dim=1)


@dataclass(kw_only=True)
class AdaLoRA(MapMethod):
    """AdaLoRA (arXiv 2303.10512): dW = s P diag(e) Q, P: out x r, Q: r x in kept near orthogonal; s = alpha / r.

    The loss gains orthogonality times the mean over matrices of ||P^T P - I|| + ||Q Q^T - I||. The triples kept in
    the whole model fall from rank to target_rank a matrix by a cubic schedule, which begins after warmup and ends
    final (shares of all steps) before the end; every `interval` steps the least important have e set to zero.
    Initialisation: P, Q normal 0.02, e zero, so step 0 changes nothing. Parameters per matrix: r (in + out + 1).
    """

    size = "rank"
    rank: int = 12
    target_rank: int = 8
    alpha: float = 12.0
    dropout: float = 0.0
    orthogonality: float = 0.5
    warmup: float = 0.2
    final: float = 0.3
    interval: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.target_rank <= self.rank:
            raise InputError("method.target_rank lies between 1 and method.rank")
        if not (self.warmup >= 0 and self.final >= 0 and self.warmup + self.final < 1):
            raise InputError("method.warmup and method.final are shares of the steps that leave some between them")
        check_at_least_one(interval=self.interval)
        check_dropout(self.dropout)

    def sized(self, value: float) -> Self:
        """Return the method with another rank, and the target in the same proportion."""
        target = max(1, int(value) * self.target_rank // self.rank)
        return replace(self, rank=int(value), target_rank=target)

    def make_map(self, place: Place, weight: Tensor) -> AdaLoRAMap:
        """Return the triples for one place."""
        check_rank(self.rank, place, weight)
        return AdaLoRAMap(weight, self.rank, self.alpha / self.rank, self.dropout)

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the weighted mean of the matrices' distances from orthogonality."""
        maps = adapted_maps(model, AdaLoRAMap)
        return self.orthogonality * torch.stack([adapted.penalty() for adapted in maps]).mean()

    def budget(self, step: int, total: int, matrices: int) -> tuple[int, bool]:
        """Return how many triples the model keeps at a step, and whether they are chosen at it."""
        start, end = int(self.warmup * total), total - int(self.final * total)
        first, last = self.rank * matrices, self.target_rank * matrices
        if step >= end:
            return last, step == end
        if step <= start:
            return first, False
        left = 1 - (step - start) / (end - start)
        return int(last + (first - last) * left**3), step % self.interval == 0

    @torch.no_grad()
    def on_step(self, model: nn.Module, step: int, total: int) -> None:
        """Observe the gradients; where it is time, drop the least important triples of the whole model.

        Between two choices a dropped triple may come back; after the last one it stays dropped.
        """
        maps = adapted_maps(model, AdaLoRAMap)
        end = total - int(self.final * total)
        if step < end:
            for adapted in maps:
                adapted.observe()
        budget, choosing = self.budget(step, total, len(maps))
        if choosing:
            scores = torch.cat([adapted.scores() for adapted in maps])
            dropped = len(scores) - budget
            threshold = torch.kthvalue(scores, dropped).values if dropped else -1.0
            for adapted in maps:
                adapted.kept = adapted.scores() > threshold
        if choosing or step > end:
            for adapted in maps:
                adapted.e.masked_fill_(~adapted.kept, 0.0)
