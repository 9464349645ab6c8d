"""IntLoRA: adapts a quantised weight so that what comes out is quantised again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, layers_of
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one, check_rank
from neat_bench.models.roles import Place

SHRINKS, ERROR_POWER = 80, 2.4  # of the search for a row's scale, as in the code


def _rounded(x: Tensor) -> Tensor:
    """Return x rounded, with the gradient of x."""
    return x + (x.round() - x).detach()


def row_scales(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return each row's scale and zero point (rows x 1) for whole numbers of so many bits, 0 to 2^bits - 1.

    The range shrinks step by step from the row's own; the one with the least sum of |error|^2.4 is taken.
    """
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    levels = 2**bits - 1
    best = torch.full_like(low, math.inf)
    chosen, zero = torch.ones_like(low), torch.zeros_like(low)
    for step in range(0 if x.is_meta else SHRINKS):
        factor = 1 - step / SHRINKS
        scale = ((high - low) * factor / levels).clamp_min(torch.finfo(x.dtype).tiny)
        point = (-low * factor / scale).round()
        error = (scale * ((x / scale).round() + point).clamp(0, levels).sub(point) - x).abs().pow(ERROR_POWER)
        total = error.sum(1, keepdim=True)
        better = total < best
        best, chosen, zero = (torch.where(better, new, old) for new, old in
                              ((total, best), (scale, chosen), (point, zero)))  # fmt: skip
    return chosen, zero


class IntLoRAMap(AdaptedMap):
    """LoRA's factors and the quantised weight of one place; see IntLoRA."""

    integers: Tensor
    step: Tensor
    auxiliary: Tensor
    E: Tensor
    point: Tensor

    def __init__(self, weight: Tensor, rank: int, scale: float, bits: int, shift: bool, seed: int) -> None:
        super().__init__()
        out, inputs = weight.shape
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale, self.bits, self.shift = scale, bits, shift
        self.to(weight.device)
        self._quantise(weight.detach().to(self.A.dtype), seed)

    @torch.no_grad()
    def _quantise(self, weight: Tensor, seed: int) -> None:
        """Set what stays fixed: the integers, their row scales, the auxiliary matrix and the factor's row scales."""
        if not weight.is_meta:  # without values there is nothing to draw for
            generator = torch.Generator().manual_seed(seed)
            uniform = torch.rand(weight.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(weight) - 0.5
        else:
            uniform = weight
        R = -0.5 * uniform.sign() * torch.log1p(-2 * uniform.abs())  # Laplace(0, 0.5)
        extent = torch.minimum(R.amax(1, keepdim=True).abs(), R.amin(1, keepdim=True).abs())
        R = R * (weight.abs().amax(1, keepdim=True) / extent.clamp_min(1e-12)) ** 1.5
        D, zero = row_scales(weight - R, self.bits)
        integers = ((weight - R) / D).round().add(zero).clamp(0, 2**self.bits - 1).sub(zero)
        self.register_buffer("integers", integers, persistent=False)
        self.register_buffer("step", D, persistent=False)
        self.register_buffer("auxiliary", R, persistent=False)
        first = self._factor()
        E, point = row_scales(first, self.bits)
        self.register_buffer("E", E, persistent=False)
        self.register_buffer("point", point, persistent=False)

    def _factor(self) -> Tensor:
        """Return u = D + (R + s B A) / Wq (over 1 where an integer is 0), out x in."""
        divisor = torch.where(self.integers == 0, torch.ones_like(self.integers), self.integers)
        return self.step + (self.auxiliary + self.scale * self.B @ self.A) / divisor

    def whole_numbers(self) -> Tensor:
        """Return the adapted integers: u in its row's whole steps times Wq; with shift, Wq is the integer itself."""
        if self.shift:
            return self.integers
        levels = _rounded(self._factor() / self.E + self.point).clamp(0, 2**self.bits - 1) - self.point
        return levels * self.integers

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return E (u_int * Wq), or with shift sign(u) 2^round(log2 |u|) Wq."""
        if not self.shift:
            return (self.E * self.whole_numbers()).to(weight.dtype), bias
        u = self._factor()
        exponent = _rounded(u.abs().clamp_min(1e-12).log2())
        return (u.sign() * exponent.exp2() * self.integers).to(weight.dtype), bias


@dataclass(kw_only=True)
class IntLoRA(MapMethod):
    """IntLoRA (arXiv 2410.21759): W = E (u_int * Wq), an integer product, u = D + (R + s B A) / Wq, s = alpha / r.

    Wq: W0 - R per row in `bits` bits with scale D; R: random, Laplace(0, 0.5) rescaled per row. u is rounded per row
    to `bits` bits at the scale E it has at the start, straight through to A and B. form: mul, or shift, where u
    becomes sign(u) 2^round(log2 |u|), a bit shift. Initialisation: LoRA's; step 0 is W0 up to quantisation (the
    record's `method` field says how far). Parameters per matrix: r (in + out).
    """

    size = "rank"
    starts_at_pretrained = False
    rank: int = 8
    alpha: float = 8.0
    bits: int = 8
    form: str = "mul"
    auxiliary_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank)
        if self.form not in ("mul", "shift"):
            raise InputError(f"method.form is mul or shift, not '{self.form}'")
        if not 2 <= self.bits <= 8:
            raise InputError(f"method.bits lies between 2 and 8, not {self.bits}")

    def make_map(self, place: Place, weight: Tensor) -> IntLoRAMap:
        """Return the factors and the quantised weight for one place."""
        check_rank(self.rank, place, weight)
        seed = self.auxiliary_seed + 1000 * place.layer + sum(map(ord, place.role))
        return IntLoRAMap(weight, self.rank, self.alpha / self.rank, self.bits, self.form == "shift", seed)

    @torch.no_grad()
    def report(self, model: nn.Module, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return how far the quantised start was from W0: the largest relative error (Frobenius) of a matrix."""
        errors = []
        for _, _, adapted, weight in layers_of(model):
            assert isinstance(adapted, IntLoRAMap)
            trained, adapted.B.data = adapted.B.data, torch.zeros_like(adapted.B)
            difference = adapted.merged(weight, None)[0] - weight
            errors.append((torch.linalg.norm(difference) / torch.linalg.norm(weight)).item())
            adapted.B.data = trained
        return {"start_error": max(errors)}
