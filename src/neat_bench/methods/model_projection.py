"""Model projection: one learned factor for each filter of a convolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neat_bench.errors import InputError
from neat_bench.methods.base import Method
from neat_bench.models.roles import Place


class Gates(nn.Module):
    """g: out x in, times the out x in x kh x kw filters."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.ones(weight.shape[:2], device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the gated filters."""
        return weight * self.gates[..., None, None].to(weight.dtype)


@dataclass(kw_only=True)
class ModelProjection(Method):
    """Model projection (arXiv 2602.06245), for convolutional networks: each frozen kh x kw filter times one factor.

    A convolution trains out x in factors in place of out x in x kh x kw weights (in: per group); 1 x 1 convolutions
    train in full by this. train_norms: let normalisations train too (the paper leaves it open). Initialisation:
    ones, so step 0 changes nothing. Parameters per convolution: out in / groups.
    """

    train_norms: bool = False

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Put factors on every convolution; raises InputError for a model that is not convolutional."""
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        if len(convolutions) < 2:  # a vision transformer has one, which cuts the patches
            raise InputError(
                f"{self.name} is for convolutional networks, and this model is none (try efficientnet_lite0)"
            )
        for convolution in convolutions:
            parametrize.register_parametrization(convolution, "weight", Gates(convolution.weight))
        for module in model.modules() if self.train_norms else []:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(True)
