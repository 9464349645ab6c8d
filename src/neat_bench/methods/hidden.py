"""Edits of hidden states, for what no weight can absorb, and what they may read beside their own input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from neat_bench.models.roles import architecture_of, backbone_of


class HiddenEdit(nn.Module):
    """An edit of a block's hidden states that no weight can absorb; evaluation keeps it as a branch."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the edited hidden states, batch x tokens x d."""
        raise NotImplementedError


def edit_output(block: nn.Module, edit: HiddenEdit) -> None:
    """Pass the block's output (or the first item of a tuple) through the edit from now on."""
    block.add_module("hidden_edit", edit.to(next(block.parameters()).device))
    edit.train(block.training)

    def hook(module: nn.Module, _: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return (module.get_submodule("hidden_edit")(output[0]), *output[1:])
        return module.get_submodule("hidden_edit")(output)

    block.register_forward_hook(hook)


class SideNetwork(nn.Module):
    """Trainable modules that read a model's activations and that nothing in the model reads in turn."""


class Context:
    """Filled by hooks as the model runs; `embedded` (batch x tokens x d) is the first block's input."""

    def __init__(self, model: nn.Module) -> None:
        self.embedded: Tensor | None = None
        self.mask: Tensor | None = None
        _, backbone = backbone_of(model)
        blocks = backbone.get_submodule(architecture_of(model).blocks)
        backbone.register_forward_pre_hook(self._see_mask, with_kwargs=True)
        next(iter(blocks.children())).register_forward_pre_hook(self._see_embedded)

    def _see_mask(self, _: nn.Module, __: tuple, inputs: dict[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        self.mask = mask if mask is not None and mask.ndim == 2 else None

    def _see_embedded(self, _: nn.Module, inputs: tuple) -> None:
        self.embedded = inputs[0]
