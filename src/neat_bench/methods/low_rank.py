"""A frozen linear layer with a low-rank product beside it: what LoRA, DoRA and NEAT spend their time in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neat_bench.methods.adapted import Face, LinearRows


class _LowRankLinear(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T with W and b frozen; see `low_rank_linear`.

    Forward keeps x and x A^T. Both products with the adapter are added in place by the matrix product itself, in
    forward to y and in backward to the input's gradient, which saves two passes over tokens x out and tokens x in.
    Thin gradients are formed as r x ..., the fast way round.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        """Return y, tokens x out."""
        h = x @ A.t()
        ctx.save_for_backward(x, weight, A, B, h)
        ctx.scale = scale
        y = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        return y.addmm_(h, B.t(), alpha=scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        x, weight, A, B, h = ctx.saved_tensors
        into_h = (gradient @ B).mul_(ctx.scale)
        into_x = None
        if ctx.needs_input_grad[0]:
            into_x = (gradient @ weight.to(gradient.dtype)).addmm_(into_h, A)
        into_A = into_h.t() @ x if ctx.needs_input_grad[3] else None
        into_B = (h.t() @ gradient).mul_(ctx.scale).t() if ctx.needs_input_grad[4] else None
        return into_x, None, None, into_A, into_B, None


def low_rank_linear(
    x: Tensor,
    linear: Face,
    A: Tensor,
    B: Tensor,
    scale: float,
    dropout: nn.Dropout | None = None,
    bias: bool = True,
) -> Tensor:
    """Return x W^T (+ b) + scale (dropout(x) A^T) B^T, ... x out, from x: ... x in, A: r x in and B: out x r.

    The adapter computes in autocast's precision, else in that of x; its gradients have its own. Without dropout
    and on a plain layer, the product is fused; a quantised layer or dropout takes the separate way.
    """
    rows = x.reshape(-1, x.shape[-1])
    dropped = dropout(rows) if dropout is not None and dropout.training and dropout.p else None
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    if type(linear) in (nn.Linear, LinearRows) and dropped is None and not _trains(linear):
        rows = rows.to(dtype)
        y = _LowRankLinear.apply(rows, linear.weight, linear.bias if bias else None, A.to(dtype), B.to(dtype), scale)
    else:
        y = linear(rows)
        if not bias and linear.bias is not None:
            y = y - linear.bias.to(y.dtype)
        y = y + F.linear(F.linear(rows if dropped is None else dropped, A.to(dtype)), scale * B.to(dtype))
    return y.view(*x.shape[:-1], y.shape[-1])


def _trains(linear: Face) -> bool:
    return linear.weight.requires_grad or (linear.bias is not None and linear.bias.requires_grad)
