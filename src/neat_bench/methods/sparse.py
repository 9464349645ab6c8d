"""Updates of some entries of a weight: PaFi and SaRA; and what is left of a model when small entries go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import DeltaMap, adapt, layers_of, weight_at
from neat_bench.methods.base import MapMethod
from neat_bench.models.roles import Place


class SparseMap(DeltaMap):
    """What some entries of a weight gained: only these values are stored and optimised; see PaFi and SaRA.

    entries: their flat positions in the weight. limit: SaRA's, beyond which an entry stands still. A value that is
    not `active` stands still at `held`.
    """

    entries: Tensor
    active: Tensor
    held: Tensor

    def __init__(self, entries: Tensor, limit: float = math.inf) -> None:
        super().__init__()
        self.limit = limit
        self.values = nn.Parameter(torch.zeros(len(entries), device=entries.device))
        self.register_buffer("entries", entries)
        self.register_buffer("active", torch.ones(len(entries), dtype=torch.bool, device=entries.device))
        self.register_buffer("held", torch.zeros(len(entries), device=entries.device))

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return the update, out x in."""
        values = torch.where(self.active, self.values, self.held.to(self.values.dtype))
        return values.new_zeros(weight.numel()).index_put((self.entries,), values).view(weight.shape)


def _sparse(model: nn.Module) -> Iterator[tuple[SparseMap, Tensor]]:
    """Yield each sparse map with its frozen weight."""
    for _, _, adapted, weight in layers_of(model):
        assert isinstance(adapted, SparseMap)
        yield adapted, weight


def smallest(weights: list[Tensor], share: float) -> float:
    """Return the size up to which entries are among the smallest `share` of all the weights' entries."""
    every = torch.cat([weight.detach().abs().flatten().cpu() for weight in weights])
    return every.kthvalue(max(1, int(share * len(every)))).values.item()


def entries_up_to(weight: Tensor, limit: float) -> Tensor:
    """Return the flat positions of the entries of a size up to the limit."""
    return (weight.detach().abs().flatten() <= limit).nonzero()[:, 0]


@torch.no_grad()
def when_pruned(
    weights: list[Tensor], densities: list[float], measure: Callable[[], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return what is measured when only the largest entries of all the weights together are left, by their share.

    The weights are whole again afterwards.
    """
    whole = [weight.detach().clone() for weight in weights]
    found = {}
    for density in densities:
        limit = smallest(whole, 1 - density)
        for weight, kept in zip(weights, whole, strict=True):
            weight.copy_(torch.where(kept.abs() <= limit, 0.0, kept))
        found[f"{density:g}"] = measure()
    for weight, kept in zip(weights, whole, strict=True):
        weight.copy_(kept)
    return found


def check_densities(densities: list[float]) -> None:
    """Refuse what is no share of the entries to keep."""
    if not all(0 < density < 1 for density in densities):
        raise InputError("method.densities are shares of the entries, between 0 and 1")


@dataclass(kw_only=True)
class PaFi(MapMethod):
    """PaFi (arXiv 2305.16742): the entries of smallest |W0| train, chosen from the weights alone.

    share: of the targets' entries, in each matrix or, with over_model, in all of them together (the paper leaves
    this open). Initialisation: pretrained values, so step 0 changes nothing. Parameters: share times the entries.
    """

    size = "share"
    size_kind = "share"
    share: float = 0.005
    over_model: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise InputError(f"method.share lies above 0 and at most at 1, not {self.share}")

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Choose the entries and let them train."""
        weights = [weight_at(place, self.name) for place in places]
        limit = smallest(weights, self.share) if self.over_model else None
        for place, weight in zip(places, weights, strict=True):
            if limit is None:
                count = max(1, int(self.share * weight.numel()))
                entries = weight.detach().abs().flatten().topk(count, largest=False).indices.sort().values
            else:
                entries = entries_up_to(weight, limit)
            if len(entries):
                adapt(model, place, SparseMap(entries))


@dataclass(kw_only=True)
class SaRA(MapMethod):
    """SaRA (arXiv 2409.06633): the entries with |W0| below a threshold train; those that grow past it then freeze.

    threshold, or share of the targets' entries (which finds the threshold). At `renew` (a share of all steps) the
    mask is taken anew from the present weights. The loss gains low_rank times the nuclear norm of one random
    matrix of trained entries a step, of those whose smaller side exceeds 64. Initialisation: pretrained values, so
    step 0 changes nothing. Parameters: the entries below the threshold.
    """

    size = "share"
    size_kind = "share"
    threshold: float = 2e-3
    share: float | None = None
    renew: float = 0.5
    low_rank: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share is not None and not 0 < self.share <= 1:
            raise InputError(f"method.share lies above 0 and at most at 1 (null for the threshold), not {self.share}")
        if self.threshold <= 0 or not 0 < self.renew <= 1:
            raise InputError("method.threshold is above 0 and method.renew a share of the steps")

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Choose the entries; raises InputError where the threshold leaves none."""
        if any(weight_at(place, self.name).is_meta for place in places):
            raise InputError(f"{self.name} chooses entries by their values, which a model without weights has none of")
        weights = [weight_at(place, self.name) for place in places]
        limit = self.threshold if self.share is None else smallest(weights, self.share)
        chosen = 0
        for place, weight in zip(places, weights, strict=True):
            entries = entries_up_to(weight, limit)
            if len(entries):
                chosen += len(entries)
                adapt(model, place, SparseMap(entries, limit))
        if not chosen:
            raise InputError(f"no weight of the targets lies below method.threshold={self.threshold}: raise it")

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return the weighted nuclear norm of one matrix of trained entries, drawn at random."""
        large = [(adapted, weight) for adapted, weight in _sparse(model) if min(weight.shape) > 64]
        if not large or not self.low_rank:
            return None
        adapted, weight = large[int(torch.randint(len(large), ()))]
        entries = adapted.entries
        kept = torch.zeros_like(weight).view(-1).index_put((entries,), weight.detach().reshape(-1)[entries])
        return self.low_rank * torch.linalg.matrix_norm(kept.view(weight.shape) + adapted.of_weight(weight), "nuc")

    @torch.no_grad()
    def on_step(self, model: nn.Module, step: int, total: int) -> None:
        """Freeze, once, the entries that have grown past the threshold."""
        if step != max(1, int(self.renew * total)):
            return
        for adapted, weight in _sparse(model):
            present = weight.reshape(-1)[adapted.entries] + adapted.values
            adapted.active = present.abs() <= adapted.limit
            adapted.held = adapted.values.detach().clone()
