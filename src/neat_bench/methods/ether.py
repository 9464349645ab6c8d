"""ETHER and ETHER+: reflections of the weight along learned directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, Face
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one
from neat_bench.models.roles import Place


class Reflection(nn.Module):
    """The directions of n blocks: multiplies the last axis by H = I - c u u^T (+ v v^T), u and v of unit length."""

    def __init__(self, size: int, blocks: int, plus: bool) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.empty(blocks, size // blocks))
        nn.init.kaiming_uniform_(self.u, a=math.sqrt(5))
        self.v = nn.Parameter(-self.u.detach().clone()) if plus else None

    def forward(self, x: Tensor) -> Tensor:
        """Return x H, the shape of x; two vector products a block, H itself is not formed."""
        blocks = x.unflatten(-1, self.u.shape)

        def along(direction: Tensor) -> Tensor:
            unit = (direction / direction.norm(dim=1, keepdim=True)).to(x.dtype)
            return (blocks * unit).sum(-1, keepdim=True) * unit

        edited = blocks - 2 * along(self.u) if self.v is None else blocks - along(self.u) + along(self.v)
        return edited.flatten(-2)


class ETHERMap(AdaptedMap):
    """The reflections of one place, on its input and perhaps on its output; see ETHER."""

    def __init__(self, weight: Tensor, blocks: int, plus: bool, both_sides: bool) -> None:
        super().__init__()
        self.input = Reflection(weight.shape[1], blocks, plus)
        self.output = Reflection(weight.shape[0], blocks, plus) if both_sides else None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return H_out W0 H_in."""
        weight = self.input(weight)
        return (weight if self.output is None else self.output(weight.t()).t()), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply the frozen layer to x H_in, and H_out to what comes out, bias apart."""
        y = linear(self.input(x))
        if self.output is None:
            return y
        return self.output(y) if linear.bias is None else self.output(y - linear.bias) + linear.bias


@dataclass(kw_only=True)
class ETHER(MapMethod):
    """ETHER (arXiv 2405.20271): W = W0 H, H = blockdiag(I - 2 u u^T / ||u||^2) over n blocks of input columns.

    H is orthogonal with determinant -1 a block and stays at distance 2 sqrt(n) from I: step 0 changes the output.
    plus (ETHER+): H = I - u u^T / ||u||^2 + v v^T / ||v||^2 with v = -u at the start, so step 0 changes nothing;
    both_sides adds one on the output. Blocks are cut by columns (the released reshape cuts them by memory order).
    Initialisation: u Kaiming uniform. Parameters per matrix: in; plus: 2 in, or 2 (in + out) on both sides.
    """

    blocks: int = 4
    plus: bool = False
    both_sides: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(blocks=self.blocks)
        if self.both_sides and not self.plus:
            raise InputError("method.both_sides belongs to ETHER+: set method.plus=true")

    @property
    def starts_at_pretrained(self) -> bool:  # type: ignore[override]
        """Whether the two directions cancel at the start."""
        return self.plus

    def make_map(self, place: Place, weight: Tensor) -> ETHERMap:
        """Return the reflections for one place."""
        if weight.shape[1] % self.blocks or (self.both_sides and weight.shape[0] % self.blocks):
            raise InputError(
                f"method.blocks={self.blocks} does not divide {place.path} ({weight.shape[0]} x {weight.shape[1]})"
            )
        return ETHERMap(weight, self.blocks, self.plus, self.both_sides)
