"""SIBO: LoRA or an adapter that always sees some of the embedding output."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import Face, adapt, weight_at
from neat_bench.methods.adapters import Adapter, Bottleneck
from neat_bench.methods.checks import check_rank
from neat_bench.methods.hidden import Context
from neat_bench.methods.lora import LoRA, LoRAMap
from neat_bench.models.roles import Place, hidden_size


def _mixed(x: Tensor, initial: float, context: Context) -> Tensor:
    """Return (1 - lam) x + lam h0, h0 the embedding output of the present batch."""
    assert context.embedded is not None
    return (1 - initial) * x + initial * context.embedded.to(x.dtype)


def _check_initial(initial: float) -> None:
    if not 0 <= initial <= 1:
        raise InputError(f"method.initial lies between 0 and 1, not {initial}")


class SIBOMap(LoRAMap):
    """LoRA's factors on a mixed input; see SIBO."""

    mergeable = False

    def __init__(
        self, weight: Tensor, rank: int, scale: float, dropout: float, initial: float, context: Context
    ) -> None:
        super().__init__(weight, rank, scale, dropout)
        self.initial = initial
        self.context = context

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b + s (((1 - lam) x + lam h0) A^T) B^T."""
        mixed = self.dropout(_mixed(x, self.initial, self.context))
        return linear(x) + F.linear(F.linear(mixed, self.A.to(x.dtype)), self.scale * self.B.to(x.dtype))


@dataclass(kw_only=True)
class SIBO(LoRA):
    """SIBO (arXiv 2402.11896) on LoRA: the adapter's input is (1 - lam) x + lam h0, h0 the embedding output.

    initial: lam, 0.1 to 0.3 in the paper. Cannot be merged, because of h0. Where a place's input is not of the
    hidden size (mlp_down) it does not apply. Initialisation and parameters: LoRA's; step 0 changes nothing.
    """

    initial: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_initial(self.initial)

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Put the factors at every place; raises InputError where the input has another size."""
        context = Context(model)
        hidden = hidden_size(model)
        for place in places:
            weight = weight_at(place, self.name)
            if place.role == "mlp_down" or weight.shape[1] != hidden:
                raise InputError(f"{self.name} mixes in the embedding, which {place.path}'s input cannot take")
            check_rank(self.rank, place, weight)
            adapt(model, place, SIBOMap(weight, self.rank, self.scale, self.dropout, self.initial, context))


class SIBOBottleneck(Bottleneck):
    """A bottleneck on a mixed input; see SIBOAdapter."""

    def __init__(
        self, size: int, bottleneck: int, scale: float, activation: str, initial: float, context: Context
    ) -> None:
        super().__init__(size, bottleneck, scale, activation)
        self.initial = initial
        self.context = context

    def update(self, hidden: Tensor) -> Tensor:
        """Return f(((1 - lam) h + lam h0) D + d) U + u, ... x d."""
        return super().update(_mixed(hidden, self.initial, self.context))


@dataclass(kw_only=True)
class SIBOAdapter(Adapter):
    """SIBO on bottleneck adapters: an adapter's input is (1 - lam) h + lam h0, h0 the embedding output.

    initial: lam. Initialisation and parameters: the adapters'; step 0 changes nothing.
    """

    initial: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_initial(self.initial)

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Put an adapter at every place."""
        self._context = Context(model)
        super().attach(model, places)

    def make_edit(self, size: int) -> SIBOBottleneck:
        """Return the adapter of a place with outputs of a size."""
        return SIBOBottleneck(size, self.bottleneck, self.scale, self.activation, self.initial, self._context)
