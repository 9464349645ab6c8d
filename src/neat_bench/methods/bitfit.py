"""BitFit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neat_bench.errors import InputError
from neat_bench.methods.base import Method
from neat_bench.models.roles import Place


@dataclass(kw_only=True)
class BitFit(Method):
    """BitFit (arXiv 2106.10199): every bias of the model trains, norms' biases included, nothing else.

    Initialisation: pretrained values. Parameters: the sum of the biases' sizes.
    """

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Let the biases train; raises InputError for a model without any."""
        biases = [parameter for name, parameter in model.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not any(not bias.requires_grad for bias in biases):
            raise InputError("bitfit trains biases, and this model's backbone has none")
        for bias in biases:
            bias.requires_grad_(True)
