"""Deep LoRA: a product of small matrices in a subspace that the first gradient picks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, Face
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_rank
from neat_bench.methods.gradients import map_gradients
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.models.roles import Place


def _product(factors: list[Tensor]) -> Tensor:
    """Return W_d ... W_1 of factors W_1, ..., W_d."""
    return reduce(lambda right, left: left @ right, factors)


def orthogonal_factors(weight: Tensor, depth: int, epsilon: float) -> list[Tensor]:
    """Return W_1: m x in, W_2 ... : m x m, W_d: out x m, epsilon times (semi-)orthogonal, m = min(out, in)."""
    out, inputs = weight.shape
    m = min(out, inputs)
    sizes = [(m, inputs), *([(m, m)] * (depth - 2)), (out, m)]
    return [epsilon * nn.init.orthogonal_(torch.empty(size)) for size in sizes]


class DeepLoRAMap(AdaptedMap):
    """The whole factors of one place; see DeepLoRA."""

    def __init__(self, weight: Tensor, depth: int, epsilon: float) -> None:
        super().__init__()
        self.factors = nn.ParameterList(orthogonal_factors(weight, depth, epsilon))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + W_d ... W_1."""
        return weight + _product(list(self.factors)), bias


class CompressedDeepLoRAMap(AdaptedMap):
    """The r x r factors of one place between two bases, L: out x r and R: in x r; see DeepLoRA.

    What the bases gain, over gamma, is trained beside them where gamma is above 0.
    """

    L: Tensor
    R: Tensor

    def __init__(self, weight: Tensor, rank: int, depth: int, epsilon: float, gamma: float) -> None:
        super().__init__()
        out, inputs = weight.shape
        self.factors = nn.ParameterList(epsilon * torch.eye(rank) for _ in range(depth))
        self.register_buffer("L", torch.zeros(out, rank))
        self.register_buffer("R", torch.zeros(inputs, rank))
        self.gamma = gamma
        self.gain_L = nn.Parameter(torch.zeros(out, rank)) if gamma else None
        self.gain_R = nn.Parameter(torch.zeros(inputs, rank)) if gamma else None

    def _up(self) -> Tensor:
        """Return L C_d ... C_1, out x r."""
        L = self.L if self.gain_L is None else self.L + self.gamma * self.gain_L
        return L @ _product(list(self.factors))

    def _down(self) -> Tensor:
        """Return R^T, r x in."""
        return (self.R if self.gain_R is None else self.R + self.gamma * self.gain_R).t()

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + L (C_d ... C_1) R^T."""
        return weight + self._up() @ self._down(), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b + (x R) (L C_d ... C_1)^T."""
        return low_rank_linear(x, linear, self._down(), self._up(), 1.0)


@dataclass(kw_only=True)
class DeepLoRA(MapMethod):
    """Deep LoRA (arXiv 2406.04112): dW = W_d ... W_1, all epsilon times orthogonal at the start.

    compressed (the paper's point): dW = L (C_d ... C_1) R^T with C_i: r x r = epsilon I. From the gradient
    G = U S V^T of W_1 in the whole form, R is an orthonormal basis of W_1^T U[:, :r/2] and V[:, :r/2] together (the
    complement of the intersection that the paper takes), L = W_d ... W_1 R / epsilon^d. gamma: they
    train at gamma times the learning rate (as L + gamma g with g trained, which is that under Adam); 0, the code's
    default, freezes them. Step 0 changes outputs in the order of epsilon^d. Parameters per matrix: d r^2, with gamma
    above 0 also r (in + out); or all of W_i.
    """

    size = "rank"
    rank: int = 8
    depth: int = 3
    epsilon: float = 1e-3
    compressed: bool = True
    batches: int = 4
    gamma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or self.depth < 2 or self.batches < 1 or self.epsilon <= 0:
            raise InputError("method.depth is at least 2, method.rank and batches 1, and method.epsilon above 0")
        if self.gamma < 0 or (self.gamma and not self.compressed):
            raise InputError("method.gamma is not negative, and belongs to the compressed form")

    @property
    def prepare_batches(self) -> int:  # type: ignore[override]
        """How many batches the gradient is a mean over."""
        return self.batches if self.compressed else 0

    def make_map(self, place: Place, weight: Tensor) -> AdaptedMap:
        """Return the factors for one place."""
        check_rank(self.rank, place, weight)
        if self.compressed:
            return CompressedDeepLoRAMap(weight, self.rank, self.depth, self.epsilon, self.gamma)
        return DeepLoRAMap(weight, self.depth, self.epsilon)

    def prepare(self, model: nn.Module, batches: list[Any], loss: Callable[[Any], Tensor]) -> None:
        """Choose the bases of every place from the gradient of its weight."""
        for adapted, weight, gradient in map_gradients(model, batches, loss):
            assert isinstance(adapted, CompressedDeepLoRAMap)
            self.choose(adapted, weight, gradient)

    @torch.no_grad()
    def choose(self, adapted: CompressedDeepLoRAMap, weight: Tensor, gradient: Tensor) -> None:
        """Set L and R from the gradient (out x in, on the CPU) of the frozen weight."""
        factors = orthogonal_factors(weight, self.depth, self.epsilon)
        U, _, Vt = torch.linalg.svd(_product(factors[1:]).t() @ gradient, full_matrices=False)
        half = self.rank // 2
        spanned = torch.cat([factors[0].t() @ U[:, : self.rank - half] / self.epsilon, Vt[:half].t()], dim=1)
        R = torch.linalg.qr(spanned).Q
        adapted.R.copy_(R)
        adapted.L.copy_(_product(factors) @ R / self.epsilon**self.depth)
