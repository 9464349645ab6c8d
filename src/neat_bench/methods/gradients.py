"""Gradients of frozen weights before training, for methods that start from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, layers_of


def mean_gradients(
    weights: list[Tensor], batches: list[Any], loss: Callable[[Any], Tensor], squared: bool = False
) -> dict[Tensor, Tensor]:
    """Return for each frozen weight the mean over the batches of its gradient, or of the gradient's square.

    The sums live on the CPU: as backward comes to a weight its gradient is moved there and dropped, so the device
    holds one at a time. What trains gets no gradient, and the weights are
    frozen again.
    """
    if any(not weight.is_floating_point() for weight in weights):
        raise InputError(
            "a method that looks at gradients of the weights needs them unquantised: model.quantization=null"
        )
    sums = {weight: torch.zeros(weight.shape, dtype=torch.float32) for weight in weights}

    @torch.no_grad()
    def collect(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = weight.grad.float()
        sums[weight] += (gradient.square() if squared else gradient).cpu()
        weight.grad = None

    hooks = []
    for weight in weights:
        weight.requires_grad_(True)
        hooks.append(weight.register_post_accumulate_grad_hook(collect))
    try:
        for batch in batches:
            loss(batch).backward(inputs=weights)
    finally:
        for weight, hook in zip(weights, hooks, strict=True):
            hook.remove()
            weight.requires_grad_(False)
    return {weight: total / len(batches) for weight, total in sums.items()}


def map_gradients(
    model: nn.Module, batches: list[Any], loss: Callable[[Any], Tensor]
) -> Iterator[tuple[AdaptedMap, Tensor, Tensor]]:
    """Yield each adapted map of the model, the frozen weight it owns, and that weight's mean gradient (on the CPU)."""
    gradients = mean_gradients(list(dict.fromkeys(layer.base.weight for layer, *_ in layers_of(model))), batches, loss)
    for layer, role, adapted, weight in layers_of(model):
        rows = layer.rows_of(role)
        gradient = gradients[layer.base.weight]
        yield adapted, weight, gradient if rows is None else gradient[slice(*rows)]
