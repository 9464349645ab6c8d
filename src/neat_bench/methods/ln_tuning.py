"""LayerNorm tuning."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neat_bench.errors import InputError
from neat_bench.methods.base import Method
from neat_bench.models.roles import Place


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a layer norm or an RMS norm of any library."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


@dataclass(kw_only=True)
class LNTuning(Method):
    """LayerNorm tuning (arXiv 2312.11420): weights and biases of the norms train.

    Initialisation: pretrained values. Parameters: the norms' sizes.
    """

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Let the norms train; raises InputError for a model without any."""
        norms = [module for module in model.modules() if is_norm(module)]
        if not norms:
            raise InputError("ln_tuning trains layer norms, and this model has none")
        for norm in norms:
            norm.requires_grad_(True)
