"""RED: one scale and one bias vector on a representation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, Face
from neat_bench.methods.base import MapMethod
from neat_bench.methods.hidden import HiddenEdit, edit_output
from neat_bench.models.roles import Place, hidden_size


class _ScaleBias(nn.Module):
    """l (starts at 1) and b (starts at 0), either of which may be left out."""

    def __init__(self, size: int, scale: bool, bias: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size)) if scale else None
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def edit(self, hidden: Tensor) -> Tensor:
        """Return l * h + b."""
        scale, bias = (None if vector is None else vector.to(hidden.dtype) for vector in (self.scale, self.bias))
        if scale is None or bias is None:
            return hidden * scale if bias is None else hidden + bias  # type: ignore[operator]
        return torch.addcmul(bias, hidden, scale)


class REDMap(_ScaleBias, AdaptedMap):
    """The edit of a linear map's output, which is a linear map again."""

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return l W0 and l b0 + b."""
        if self.scale is not None:
            weight = self.scale[:, None] * weight
        zero = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        return weight, self.edit(zero if bias is None else bias)

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply l (x W0^T + b0) + b."""
        return self.edit(linear(x))


class REDEdit(_ScaleBias, HiddenEdit):
    """The edit of a whole block's output."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return l * h + b."""
        return self.edit(hidden)


@dataclass(kw_only=True)
class RED(MapMethod):
    """RED (arXiv 2402.15179, code mlwu22/RED): h' = l * h + b at the output of each edited place.

    The place is `targets`: mlp_down (the paper's: the feed-forward output before the residual sum), output
    (attention's), any other linear role, or block, the block's output after the residual sum (and, in
    BERT's post-norm blocks, after the norm that follows it), which cannot be merged. Initialisation: l one, b zero, so
    step 0 changes nothing. train_scale, train_bias: leave either out. Parameters per place: 2 d.
    """

    train_scale: bool = True
    train_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.train_scale or self.train_bias):
            raise InputError("method.train_scale and method.train_bias are both false: nothing would train")
        if "block" in self.targets and len(self.targets) > 1:
            raise InputError("method.targets: block stands alone, it edits the output of all the others")

    def make_map(self, place: Place, weight: Tensor) -> REDMap:
        """Return the vectors for one linear map."""
        return REDMap(weight.shape[0], self.train_scale, self.train_bias)

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Edit every place."""
        if self.targets != ["block"]:
            super().attach(model, places)
            return
        size = hidden_size(model)
        for place in places:
            edit_output(place.module, REDEdit(size, self.train_scale, self.train_bias))
