"""Equal budgets: the size at which a method trains the most parameters without exceeding a number of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import weight_at
from neat_bench.methods.base import Method, attach
from neat_bench.models.roles import find_places, head_names

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
LARGEST = 2**20  # of a size; a budget in reach of it is no budget


@dataclass(frozen=True)
class Budget:
    """What was asked, and what the method makes of it: its size and its trainable parameters, head apart.

    Where the method finds them only by looking at batches, `met` is what it will not exceed.
    """

    asked: str
    limit: int
    met: int
    solved: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the record."""
        return vars(self)


def limit_of(asked: str, total: int) -> int:
    """Return a budget such as 0.3M, 18.4K, 300000 or 0.1% (of the model's parameters) as a number of parameters."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMB]?)", asked.strip())
    if match is None:
        raise InputError(f"budget is a number of parameters such as 0.3M, 18.4K, 300000 or 0.1%, not '{asked}'")
    value = float(match[1])
    limit = int(value * total / 100) if match[2] == "%" else round(value * UNITS[match[2]])
    if limit < 1:
        raise InputError(f"budget {asked} leaves no parameter")
    return limit


def _count(method: Method, skeleton: Callable[[], nn.Module]) -> int:
    """Return what a method trains on a model without weights, head apart."""
    model = skeleton()
    head = head_names(model)
    attach(method, model)
    return sum(value.numel() for name, value in model.named_parameters() if value.requires_grad and name not in head)


def solve(method: Method, asked: str, skeleton: Callable[[], nn.Module]) -> tuple[Method, Budget]:
    """Return the method at the largest size within the budget, and what it meets.

    skeleton: makes the model without weights (on torch's meta device). Raises InputError, with the nearest count
    that the method can have, where even its smallest size exceeds the budget.
    """
    limit = limit_of(asked, sum(parameter.numel() for parameter in skeleton().parameters()))

    def exceeds(found: int, how: str) -> InputError:
        return InputError(f"budget {asked} is {limit:,} parameters; the nearest {method.name} can is {found:,} ({how})")

    if method.size is None:
        met = _count(method, skeleton)
        if met > limit:
            raise exceeds(met, "its size is fixed")
        return method, Budget(asked, limit, met, {})
    if method.size_kind == "parameters":
        return method.sized(limit), Budget(asked, limit, limit, {method.size: limit})
    if method.size_kind == "share":
        places = find_places(skeleton(), method.targets, method.layers)
        entries = sum(weight_at(place, method.name).numel() for place in places)
        if limit < len(places):
            raise exceeds(len(places), "one entry a matrix")
        value: float = min(1.0, limit / entries)
        return method.sized(value), Budget(asked, limit, int(value * entries), {method.size: value})
    counts = {1: _count(method.sized(1), skeleton)}
    if counts[1] > limit:
        raise exceeds(counts[1], f"{method.size} 1")

    def fits(size: int) -> bool:
        try:
            counts[size] = _count(method.sized(size), skeleton)
        except InputError:  # larger than a matrix
            return False
        return counts[size] <= limit

    low, high = 1, 2
    while high < LARGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return method.sized(low), Budget(asked, limit, counts[low], {method.size: low})
