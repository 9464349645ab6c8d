"""How many floating-point operations training takes, counted by torch on one batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neat_bench.methods.base import set_training


class _WholeModel:
    """In place of torch's tracker of modules, whose hooks refuse a gradient taken inside a backward pass (MEFT)."""

    parents = ("Global",)

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def training_flops(
    model: nn.Module, loss: Callable[[nn.Module, dict[str, Tensor]], Tensor], batch: dict[str, Tensor]
) -> int:
    """Return the operations of forward and backward over one batch; gradients are cleared afterwards.

    torch counts matrix products, convolutions and attention (a multiply-add is two), not element-wise work.
    """
    set_training(model)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _WholeModel()  # type: ignore[assignment]
    with counter:
        loss(model, batch).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()
