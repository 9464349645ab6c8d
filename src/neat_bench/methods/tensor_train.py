"""A matrix as a train of small tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def factors_of(size: int, count: int) -> list[int]:
    """Return `count` whole numbers with the product `size`, as even as its prime factors allow, largest first."""
    primes, rest, divisor = [], size, 2
    while divisor * divisor <= rest:
        while rest % divisor == 0:
            primes.append(divisor)
            rest //= divisor
        divisor += 1
    parts = [1] * count
    for prime in sorted([*primes, *([rest] if rest > 1 else [])], reverse=True):
        parts[parts.index(min(parts))] *= prime
    return sorted(parts, reverse=True)


class TensorTrain(nn.Module):
    """A rows x columns matrix as cores G_k: r_(k-1) x n_k x r_k, the n_k factors of rows and then of columns.

    Initialisation: normal over the square root of the next rank, times sigma^(1 / cores) with sigma^2 =
    1 / (rows + columns), so that the matrix has about Glorot's spread; zero: the last core starts at zero.
    Parameters: the sum over the cores of r_(k-1) n_k r_k.
    """

    def __init__(self, rows: int, columns: int, rank: int, zero: bool) -> None:
        super().__init__()
        self.shape = rows, columns
        sizes = [*factors_of(rows, 3), *factors_of(columns, 2)]
        sizes = [size for size in sizes if size > 1] or [1]
        ranks = [1, *([rank] * (len(sizes) - 1)), 1]
        sigma = (1 / math.sqrt(rows + columns)) ** (1 / len(sizes))
        self.cores = nn.ParameterList(
            torch.randn(before, size, after) / math.sqrt(after) * sigma
            for before, size, after in zip(ranks, sizes, ranks[1:], strict=False)
        )
        if zero:
            nn.init.zeros_(self.cores[-1])

    def forward(self) -> Tensor:
        """Return the matrix, rows x columns."""
        whole = self.cores[0]
        for core in list(self.cores)[1:]:
            whole = whole.flatten(0, -2) @ core.flatten(1)
            whole = whole.view(-1, core.shape[-1])
        return whole.reshape(self.shape)
