"""What an edit may need beside its own input: the embedding output and the attention mask of the present batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from neat_bench.models.roles import architecture_of, backbone_of


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
