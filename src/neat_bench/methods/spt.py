"""SPT: trains where the loss is most sensitive, whole matrices by an adapter and single entries elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import adapt, weight_at
from neat_bench.methods.base import Method
from neat_bench.methods.checks import check_at_least_one
from neat_bench.methods.gradients import mean_gradients
from neat_bench.methods.lora import LoRAMap
from neat_bench.methods.sparse import SparseMap
from neat_bench.models.roles import Place, backbone_of, find_places, head_names

LARGEST_FLOAT = 0x7F7FFFFF  # its bits; those of floats from 0 on are in the order of their values


def sensitive_places(sensitivity: list[Tensor], cost: Callable[[list[int]], int], limit: int) -> float:
    """Return the least threshold at which training the entries of a sensitivity from there on costs up to the limit.

    cost: from how many entries of each tensor lie there to trainable parameters, never falling with them. The
    search halves the range of float32's bits, so nothing is sorted or copied.
    """
    low, high = 1, LARGEST_FLOAT  # 0 itself is no sensitivity
    while low < high:
        middle = (low + high) // 2
        threshold = torch.tensor(middle, dtype=torch.int32).view(torch.float32)
        if cost([int((each >= threshold).sum()) for each in sensitivity]) <= limit:
            high = middle
        else:
            low = middle + 1
    return torch.tensor(low, dtype=torch.int32).view(torch.float32).item()


@dataclass(kw_only=True)
class SPT(Method):
    """SPT (arXiv 2303.08566): the sensitivity of an entry is the sum over batches of its squared gradient.

    Of the targets' matrices and of the vectors in and around them (biases, norms), the most sensitive entries are
    taken. A matrix that holds at least 1 / alpha of its LoRA's parameters of them gets a LoRA of `rank`
    (s = lora_alpha / rank); in the other matrices exactly those entries train; a vector that holds at least
    1 / beta of its own entries trains whole, in the others nothing does. How many are taken follows from
    `parameters`, which the total comes closest to without exceeding it (the released tables take the best of
    several totals a task). Initialisation: B and the entries' gains zero, so step 0 changes nothing.
    """

    size = "parameters"
    size_kind = "parameters"
    parameters: int = 75_000
    batches: int = 16
    rank: int = 8
    lora_alpha: float = 16.0
    alpha: float = 5.0
    beta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(parameters=self.parameters, batches=self.batches, rank=self.rank)
        if self.alpha <= 0 or self.beta <= 0:
            raise InputError("method.alpha and method.beta are above 0")
        if not self.targets:
            raise InputError(f"method.targets of {self.name} names the matrices to choose from")

    @property
    def prepare_batches(self) -> int:  # type: ignore[override]
        """How many batches the sensitivity is a sum over."""
        return self.batches

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Check the places; `prepare` chooses among them."""
        for place in places:
            weight_at(place, self.name)

    def _vectors(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the biases and norms of the model, head apart, by name."""
        prefix, _ = backbone_of(model)
        head = head_names(model)
        parameters = dict(model.named_parameters())
        return {n: v for n, v in parameters.items() if v.ndim == 1 and n.startswith(prefix) and n not in head}

    def _whole_matrix(self, count: int, size: int) -> bool:
        """Return whether a matrix with so many sensitive entries gets a LoRA of so many parameters."""
        return count >= size / self.alpha

    def _whole_vector(self, count: int, vector: Tensor) -> bool:
        """Return whether a vector with so many sensitive entries trains."""
        return count >= vector.numel() / self.beta

    def _lora_size(self, weight: Tensor) -> int:
        return self.rank * sum(weight.shape) if self.rank <= min(weight.shape) else 2**62

    def prepare(self, model: nn.Module, batches: list[Any], loss: Callable[[Any], Tensor]) -> None:
        """Measure the sensitivities and put everything in its place; raises InputError for too small a total."""
        places = find_places(model, self.targets, self.layers)
        vectors = self._vectors(model)
        matrices = list(dict.fromkeys(place.module.weight for place in places))
        gradients = mean_gradients([*matrices, *vectors.values()], batches, loss, squared=True)  # type: ignore[list-item]

        def rows_of(place: Place) -> Tensor:
            gradient = gradients[place.module.weight]  # type: ignore[index]
            return gradient if place.rows is None else gradient[slice(*place.rows)]

        sizes = [self._lora_size(weight_at(place, self.name)) for place in places]

        def parts(counts: list[int]) -> Iterator[int]:
            """Yield what each matrix and vector trains."""
            for count, size in zip(counts, sizes, strict=False):
                yield size if self._whole_matrix(count, size) else count
            for count, vector in zip(counts[len(sizes) :], vectors.values(), strict=True):
                yield vector.numel() if self._whole_vector(count, vector) else 0

        sensitivity = [*map(rows_of, places), *(gradients[vector] for vector in vectors.values())]
        threshold = sensitive_places(sensitivity, lambda counts: sum(parts(counts)), self.parameters)
        counts = [int((each >= threshold).sum()) for each in sensitivity]
        for place, size, count, found in zip(places, sizes, counts, sensitivity, strict=False):
            weight = weight_at(place, self.name)
            if self._whole_matrix(count, size):
                adapt(model, place, self._lora(weight))
            elif count:
                adapt(model, place, SparseMap((found.flatten() >= threshold).nonzero()[:, 0].to(weight.device)))
        for count, vector in zip(counts[len(places) :], vectors.values(), strict=True):
            vector.requires_grad_(self._whole_vector(count, vector))
        if not sum(parts(counts)):
            raise InputError(f"method.parameters={self.parameters} leaves nothing to train: raise it")

    def _lora(self, weight: Tensor) -> LoRAMap:
        return LoRAMap(weight, self.rank, self.lora_alpha / self.rank, dropout=0.0)

    def rebuild(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Put maps where the state has them and let its vectors train."""
        vectors = self._vectors(model)
        for place in find_places(model, self.targets, self.layers):
            inside = f"{place.path}.maps.{place.role}."
            weight = weight_at(place, self.name)
            if inside + "entries" in state:
                adapt(model, place, SparseMap(torch.zeros_like(state[inside + "entries"], device=weight.device)))
            elif inside + "A" in state:
                adapt(model, place, self._lora(weight))
        for name, vector in vectors.items():
            # a bias moves one level down when its layer is wrapped
            path, _, tail = name.rpartition(".")
            vector.requires_grad_(name in state or f"{path}.base.{tail}" in state)
