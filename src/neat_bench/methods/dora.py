"""DoRA: magnitude and direction of each weight row, the direction moved by LoRA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neat_bench.methods.adapted import Face
from neat_bench.methods.checks import check_rank
from neat_bench.methods.lora import LoRA, LoRAMap
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.models.roles import Place


class DoRAMap(LoRAMap):
    """LoRA's factors and a magnitude for each output row; see DoRA."""

    square_norms: Tensor  # of the frozen rows

    def __init__(self, weight: Tensor, rank: int, scale: float, dropout: float) -> None:
        super().__init__(weight, rank, scale, dropout)
        self.to(weight.device)
        widest = torch.promote_types(weight.dtype, self.A.dtype)
        norms = torch.linalg.vector_norm(weight.detach(), dim=1, dtype=widest).to(self.A.dtype)
        self.magnitude = nn.Parameter(norms)
        self.register_buffer("square_norms", norms.square(), persistent=False)

    @torch.no_grad()
    def of_weight(self, weight: Tensor) -> Tensor:
        """Return ||W0 + s B A|| per row, outside the gradient as in the paper's section 4.3.

        Expanded as ||W0||^2 + 2 s <W0, B A> + ||s B A||^2, so that no out x in matrix is formed.
        """
        B = self.scale * self.B
        with torch.autocast(weight.device.type, enabled=False):
            cross = (B * F.linear(weight, self.A.to(weight.dtype))).sum(dim=1)
            square = ((B @ (self.A @ self.A.t())) * B).sum(dim=1)
        return (self.square_norms + 2 * cross + square).clamp_min(0).sqrt()

    def _gain(self, norms: Tensor) -> Tensor:
        """Return m / ||V|| per output row; an all-zero row keeps its zero."""
        return self.magnitude / norms.clamp_min(torch.finfo(self.A.dtype).tiny)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return m V / ||V|| with V = W0 + s B A."""
        direction, _ = super().merged(weight, None)
        return self._gain(self.of_weight(weight))[:, None] * direction, bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply (x W0^T + s (x A^T) B^T) m / ||V|| + b."""
        moved = low_rank_linear(x, linear, self.A, self.B, self.scale, self.dropout, bias=False)
        gain = self._gain(self.shared(linear)).to(moved.dtype)
        return moved * gain if linear.bias is None else torch.addcmul(linear.bias.to(moved.dtype), moved, gain)


@dataclass(kw_only=True)
class DoRA(LoRA):
    """DoRA (arXiv 2402.09353): W = m V / ||V||, V = W0 + s B A, the norm taken per output row.

    The norm is a constant in the backward pass (the paper's section 4.3). Initialisation: LoRA's, and
    m = ||W0|| per row, so step 0 changes nothing. Parameters per matrix: r (in + out) + out.
    """

    def make_map(self, place: Place, weight: Tensor) -> DoRAMap:
        """Return factors and magnitudes for one place."""
        check_rank(self.rank, place, weight)
        return DoRAMap(weight, self.rank, self.scale, self.dropout)
