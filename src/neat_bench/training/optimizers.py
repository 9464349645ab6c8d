"""Optimizers, each a dataclass that a config names by `_target_`, and their parameter groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from neat_bench.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(kw_only=True)
class Optimizer:
    """Learning rates and weight decay; the head's rate is `lr` unless `head_lr` says otherwise."""

    name: str
    lr: float = 1e-3
    head_lr: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise InputError(f"optimizer.lr is not negative; got {self.lr}")
        if self.head_lr is not None and self.head_lr < 0:
            raise InputError(f"optimizer.head_lr is not negative; got {self.head_lr}")
        if self.weight_decay < 0:
            raise InputError(f"optimizer.weight_decay is not negative; got {self.weight_decay}")

    def groups(self, model: nn.Module, head: set[str]) -> list[dict[str, Any]]:
        """Return up to four parameter groups: adapters and head, with and without weight decay.

        Biases and the parameters of normalisation layers never decay. The group's `name` is logged.
        """
        from torch import nn

        norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
        spared = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            for name, _ in module.named_parameters(recurse=False)
            if name == "bias" or isinstance(module, norms) or type(module).__name__.endswith("RMSNorm")
        }
        members: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                members.setdefault(("head" if name in head else "adapter", name not in spared), []).append(parameter)
        rates = {"adapter": self.lr, "head": self.lr if self.head_lr is None else self.head_lr}
        return [
            {
                "name": part,
                "params": parameters,
                "lr": rates[part],
                "weight_decay": self.weight_decay * decays,
            }
            for (part, decays), parameters in members.items()
        ]

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the torch optimizer over the groups."""
        raise NotImplementedError


@dataclass(kw_only=True)
class AdamW(Optimizer):
    """AdamW (arXiv 1711.05101) by torch."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch.optim.AdamW."""
        import torch

        return torch.optim.AdamW(groups, betas=(self.betas[0], self.betas[1]), eps=self.eps)


@dataclass(kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum by torch."""

    momentum: float = 0.9

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch.optim.SGD."""
        import torch

        return torch.optim.SGD(groups, momentum=self.momentum)
