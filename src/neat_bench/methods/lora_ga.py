"""LoRA-GA: LoRA whose first step goes where full fine-tuning's gradient points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.checks import check_rank
from neat_bench.methods.gradients import map_gradients
from neat_bench.methods.lora import LoRA, LoRAMap
from neat_bench.models.roles import Place

DIRECTIONS = ("ArB2r", "A2rBr")


class LoRAGAMap(LoRAMap):
    """LoRA's factors, and their start, which the base has lost; see LoRAGA."""

    A0: Tensor
    B0: Tensor

    def __init__(self, weight: Tensor, rank: int, scale: float, dropout: float) -> None:
        super().__init__(weight, rank, scale, dropout)
        self.register_buffer("A0", torch.zeros_like(self.A.data))
        self.register_buffer("B0", torch.zeros_like(self.B.data))

    @torch.no_grad()
    def restore(self, weight: Tensor) -> None:
        """Take the start out of the weight."""
        weight.sub_((self.scale * self.B0 @ self.A0).to(weight.dtype))


@dataclass(kw_only=True)
class LoRAGA(LoRA):
    """LoRA-GA (arXiv 2407.05000): from G = U S V^T, the mean gradient of W0, A = V^T[:r] and B = U[:, r:2r].

    Both times out^(1/4) / sqrt(gamma) (the paper's stable scale); the base becomes W0 - s B A, so step 0 changes
    nothing up to rounding. batches: training batches that the gradient is a mean over. direction: ArB2r, or A2rBr
    with the two swapped. G's decomposition is torch.svd_lowrank with q = 4 r, niter 4, as in the code.
    Parameters per matrix: r (in + out).
    """

    batches: int = 4
    gamma: float = 16.0
    direction: str = "ArB2r"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches < 1 or self.gamma <= 0:
            raise InputError("method.batches is at least 1 and method.gamma above 0")
        if self.direction not in DIRECTIONS:
            raise InputError(f"method.direction is {' or '.join(DIRECTIONS)}, not '{self.direction}'")

    @property
    def prepare_batches(self) -> int:  # type: ignore[override]
        """How many batches the gradient is a mean over."""
        return self.batches

    def make_map(self, place: Place, weight: Tensor) -> LoRAGAMap:
        """Return factors that `prepare` will set."""
        check_rank(2 * self.rank, place, weight)
        return LoRAGAMap(weight, self.rank, self.scale, self.dropout)

    def prepare(self, model: nn.Module, batches: list[Any], loss: Callable[[Any], Tensor]) -> None:
        """Set every pair of factors from the gradient of its weight."""
        for adapted, weight, gradient in map_gradients(model, batches, loss):
            assert isinstance(adapted, LoRAGAMap)
            self.start(adapted, weight, gradient.to(weight.device))

    @torch.no_grad()
    def start(self, adapted: LoRAGAMap, weight: Tensor, gradient: Tensor) -> None:
        """Set the factors from the gradient (out x in) and take them out of the weight."""
        q = min(4 * self.rank, *gradient.shape)
        U, _, V = torch.svd_lowrank(gradient.float(), q=q, niter=4)
        first, second = slice(self.rank), slice(self.rank, 2 * self.rank)
        of_a, of_b = (first, second) if self.direction == "ArB2r" else (second, first)
        stable = weight.shape[0] ** 0.25 / self.gamma**0.5
        adapted.A.copy_(stable * V[:, of_a].t())
        adapted.B.copy_(stable * U[:, of_b])
        adapted.A0.copy_(adapted.A)
        adapted.B0.copy_(adapted.B)
        adapted.restore(weight)
