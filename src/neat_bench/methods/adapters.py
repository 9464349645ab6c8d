"""Bottleneck adapters: Houlsby's, Pfeiffer's, the parallel one, and LoRETTA's of tensor trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import weight_at
from neat_bench.methods.base import Method
from neat_bench.methods.checks import ACTIVATIONS, check_activation, check_at_least_one
from neat_bench.methods.hidden import HiddenEdit, edit_output
from neat_bench.methods.ln_tuning import is_norm
from neat_bench.methods.tensor_train import TensorTrain
from neat_bench.models.roles import Place, find_places


class Bottleneck(HiddenEdit):
    """h + s f(h D) U on a map's output, or with `source` set y + s f(x D) U with x from there; see Adapter."""

    source: Tensor | None = None

    def __init__(self, size: int, bottleneck: int, scale: float, activation: str) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, bottleneck), nn.Linear(bottleneck, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.scale, self.activation = scale, ACTIVATIONS[activation]

    def update(self, hidden: Tensor) -> Tensor:
        """Return f(h D + d) U + u, ... x d."""
        return self.up(self.activation(self.down(hidden)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the edited hidden states."""
        source, self.source = hidden if self.source is None else self.source, None
        return hidden + self.scale * self.update(source)


class TrainBottleneck(Bottleneck):
    """A bottleneck whose two matrices are tensor trains."""

    def __init__(self, size: int, bottleneck: int, scale: float, activation: str, tt_rank: int, zero: bool) -> None:
        HiddenEdit.__init__(self)
        self.down_train = TensorTrain(bottleneck, size, tt_rank, zero=False)
        self.up_train = TensorTrain(size, bottleneck, tt_rank, zero=zero)
        self.scale, self.activation = scale, ACTIVATIONS[activation]

    def update(self, hidden: Tensor) -> Tensor:
        """Return f(h D) U, ... x d."""
        return F.linear(self.activation(F.linear(hidden, self.down_train())), self.up_train())


@dataclass(kw_only=True)
class Adapter(Method):
    """Bottleneck adapters (arXiv 1902.00751, 2005.00247, 2110.04366): h + s f(h D + d) U + u, D: d x m, U: m x d.

    On the outputs of the targets, before the residual sum: output and mlp_down (Houlsby), mlp_down alone (Pfeiffer);
    parallel: beside the feed-forward, y + s f(x D + d) U + u with x the feed-forward's input. Cannot be merged.
    Initialisation: U and u zero, so step 0 changes nothing; D as torch's Linear. Parameters per place: 2 d m + d + m.
    """

    size = "bottleneck"
    bottleneck: int = 32
    scale: float = 1.0
    activation: str = "gelu"
    parallel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(bottleneck=self.bottleneck)
        check_activation(self.activation)
        valid = {"mlp_down"} if self.parallel else {"output", "mlp_down"}
        if not self.targets or not set(self.targets) <= valid:
            raise InputError(f"method.targets of {self.name} are among {', '.join(sorted(valid))}")

    def make_edit(self, size: int) -> Bottleneck:
        """Return the adapter of a place with outputs of a size."""
        return Bottleneck(size, self.bottleneck, self.scale, self.activation)

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Put an adapter at every place."""
        inputs = find_places(model, ["mlp_up"], self.layers) if self.parallel else []
        for index, place in enumerate(places):
            edit = self.make_edit(weight_at(place, self.name).shape[0])
            edit_output(place.module, edit)
            if self.parallel:

                def see(_: nn.Module, arguments: tuple, edit: Bottleneck = edit) -> None:
                    edit.source = arguments[0]

                inputs[index].module.register_forward_pre_hook(see)


@dataclass(kw_only=True)
class LoRETTAAdapter(Adapter):
    """LoRETTA's adapters (arXiv 2402.11417): bottlenecks of tensor trains of tt_rank; the norms train as well.

    zero_start: the up train's last core starts at zero, so step 0 changes nothing; false is the released start,
    which does not keep the output. The released code also puts a train in the classifier's dense layer; here the
    head is every method's. Parameters: the cores', see TensorTrain, and the norms' sizes.
    """

    size = "tt_rank"
    tt_rank: int = 5
    zero_start: bool = True

    @property
    def starts_at_pretrained(self) -> bool:  # type: ignore[override]
        """Whether a core starts at zero."""
        return self.zero_start

    def make_edit(self, size: int) -> Bottleneck:
        """Return the adapter of a place with outputs of a size."""
        return TrainBottleneck(size, self.bottleneck, self.scale, self.activation, self.tt_rank, self.zero_start)

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Put an adapter at every place and let the norms train."""
        super().attach(model, places)
        for module in model.modules():
            if is_norm(module):
                module.requires_grad_(True)
