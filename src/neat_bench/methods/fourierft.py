"""FourierFT: a few trained coefficients of the update's spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import DeltaMap
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one
from neat_bench.models.roles import Place


@lru_cache(maxsize=8)
def _places(entries: int, count: int, seed: int) -> Tensor:
    """Return which entries of a flat spectrum train, the same for all matrices of one size."""
    return torch.randperm(entries, generator=torch.Generator().manual_seed(seed))[:count]


class FourierFTMap(DeltaMap):
    """The coefficients of one place and where they stand; see FourierFT."""

    places: Tensor

    def __init__(self, weight: Tensor, count: int, scale: float, zero: bool, seed: int) -> None:
        super().__init__()
        places = _places(weight.numel(), count, seed)
        self.register_buffer("places", torch.stack([places // weight.shape[1], places % weight.shape[1]]), False)
        self.spectrum = nn.Parameter(torch.zeros(count) if zero else torch.randn(count))
        self.scale = scale

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return dW = a Re(ifft2(F)), out x in."""
        dense = self.spectrum.new_zeros(weight.shape)
        dense[self.places[0], self.places[1]] = self.spectrum
        return self.scale * torch.fft.ifft2(dense).real


@dataclass(kw_only=True)
class FourierFT(MapMethod):
    """FourierFT (arXiv 2405.03003): dW = a Re(ifft2(F)), F zero but for n trained entries.

    The n places are drawn from place_seed and are the same in all matrices of one shape. Initialisation: zero, so
    step 0 changes nothing, or with zero_start=false the paper's normal values, which change the output.
    Parameters per matrix: n.
    """

    size = "count"
    count: int = 1000
    scale: float = 150.0
    zero_start: bool = True
    place_seed: int = 777

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(count=self.count)

    @property
    def starts_at_pretrained(self) -> bool:  # type: ignore[override]
        """Whether the spectrum starts at zero."""
        return self.zero_start

    def make_map(self, place: Place, weight: Tensor) -> FourierFTMap:
        """Return the coefficients for one place."""
        if self.count > weight.numel():
            raise InputError(f"method.count={self.count} exceeds the {weight.numel()} entries of {place.path}")
        return FourierFTMap(weight, self.count, self.scale, self.zero_start, self.place_seed)
