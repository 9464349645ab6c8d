"""What a method's fields may hold; each check raises InputError that names the field."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from neat_bench.errors import InputError, nearest
from neat_bench.models.roles import Place

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": lambda z: torch.sin(2 * math.pi * z),  # the NEAT paper's sinusoid, sin(2 pi z)
    "identity": lambda z: z,
}


def check_at_least_one(**fields: int) -> None:
    """Refuse a count below 1."""
    for name, value in fields.items():
        if value < 1:
            raise InputError(f"method.{name} is at least 1, not {value}")


def check_dropout(dropout: float) -> None:
    """Refuse what is no share of the entries to drop."""
    if not 0 <= dropout < 1:
        raise InputError(f"method.dropout lies in [0, 1), not {dropout}")


def check_activation(activation: str) -> None:
    """Refuse an unknown activation."""
    if activation not in ACTIVATIONS:
        raise InputError(f"unknown method.activation '{activation}'{nearest(activation, ACTIVATIONS)}")


def check_rank(rank: int, place: Place, weight: Tensor) -> None:
    """Refuse a rank that does not fit the weight (out x in) at a place."""
    if rank > min(weight.shape):
        raise InputError(
            f"method.rank={rank} is larger than the matrix at {place.path} ({weight.shape[0]} x "
            f"{weight.shape[1]}): use at most {min(weight.shape)}"
        )
