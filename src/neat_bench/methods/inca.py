"""InCA: small cross-attention heads on the activations of a model that is only ever read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.base import Method
from neat_bench.methods.checks import check_at_least_one
from neat_bench.methods.hidden import Context, SideNetwork
from neat_bench.models.roles import Place, backbone_of, head_names, hidden_size


class CrossAttentionHead(nn.Module):
    """The adapter of one layer's activations; see InCA."""

    def __init__(self, size: int, width: int, queries: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(size)
        self.queries = nn.Parameter(0.02 * torch.randn(queries, width))
        self.attention = nn.MultiheadAttention(width, heads, kdim=size, vdim=size, batch_first=True)
        self.after = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return logits, batch x outputs, from activations, batch x tokens x d, and the attention mask."""
        hidden = self.before(hidden)
        queries = self.queries.expand(len(hidden), -1, -1)
        padding = None if mask is None else mask == 0
        found, _ = self.attention(queries, hidden, hidden, key_padding_mask=padding, need_weights=False)
        return self.head(self.after(found).mean(dim=1))


class InCANetwork(SideNetwork):
    """All adapters of a model. `answers` names the one that answers in evaluation, None for the mean of logits."""

    def __init__(self, adapters: list[CrossAttentionHead], context: Context) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.context = context
        self.seen: dict[int, Tensor] = {}
        self.answers: int | None = None

    def forward(self) -> Tensor:
        """Return the logits, in training of each adapter apart (adapters x batch x outputs), else batch x outputs."""
        found = [each(self.seen.pop(index), self.context.mask) for index, each in enumerate(self.adapters)]
        if self.training:
            return torch.stack(found)
        return torch.stack(found).mean(dim=0) if self.answers is None else found[self.answers]


@dataclass(kw_only=True)
class InCA(Method):
    """InCA (arXiv 2303.04105): on the output of each chosen block, learned queries attend to the tokens.

    Logits = head(LN(MHA(queries, LN(h), LN(h)))), averaged over the queries. The backbone stays in evaluation mode
    and gets no gradient; the model's own head is not used. The loss is the sum of the adapters' own losses, so no
    gradient of one meets another. In evaluation the mean of their logits answers; the record's `method` field holds
    each adapter alone after the last step, and the best of them by the selecting part. Sizes are not known from
    the paper's code: queries, heads and head_width (d / heads where null) are fields. Initialisation: torch's, queries
    normal 0.02; step 0 is a new head's. Parameters per block, width w, outputs c: q w + 2 w^2 + 2 d w + 4 w (the
    attention with biases) + 2 d + 2 w (norms) + (w + 1) c.
    """

    size = "head_width"
    starts_at_pretrained = False
    queries: int = 1
    heads: int = 8
    head_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(queries=self.queries, heads=self.heads)
        if self.targets != ["block"]:
            raise InputError(f"method.targets of {self.name} is [block]")

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Listen to every chosen block and answer in place of the model's head."""
        _, backbone = backbone_of(model)
        head = head_names(model)
        if not head:
            raise InputError(f"{self.name} answers by heads of its own: it is for classification, not language models")
        outputs = next(v.shape[0] for n, v in reversed(list(model.named_parameters())) if n in head)
        size = hidden_size(model)
        if self.head_width is None and size % self.heads:
            raise InputError(f"method.heads={self.heads} does not divide the hidden size {size}: set method.head_width")
        width = self.heads * (size // self.heads if self.head_width is None else self.head_width)
        adapters = [CrossAttentionHead(size, width, self.queries, self.heads, outputs) for _ in places]
        network = InCANetwork(adapters, Context(model)).to(next(backbone.parameters()).device)
        network.train(model.training)
        for name in head:
            model.get_parameter(name).requires_grad_(False)
        for index, place in enumerate(places):

            def see(_: nn.Module, __: tuple, output: Tensor | tuple, index: int = index) -> None:
                network.seen[index] = (output[0] if isinstance(output, tuple) else output).detach()

            place.module.register_forward_hook(see)
        # inside the backbone: what trains outside it counts as the task head
        backbone.add_module("inca", network)
        original = model.forward

        def forward(*arguments: Any, **inputs: Any) -> Any:
            if model.training:  # the backbone gives fixed features: no dropout below the adapters
                model.eval()
                network.train()
            output = original(*arguments, **inputs)
            if isinstance(output, Tensor):
                return network()
            output["logits"] = network()
            return output

        model.forward = forward

    def loss(self, task: Any, model: nn.Module, batch: Any) -> Tensor:
        """Return the sum of the adapters' losses."""
        return torch.stack([task.loss_of(logits, batch) for logits in task.logits(model, batch)]).sum()

    def report(self, model: nn.Module, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the metrics of every adapter alone, and which block's is best by the selecting part."""
        network = next(module for module in model.modules() if isinstance(module, InCANetwork))
        alone = []
        for index in range(len(network.adapters)):
            network.answers = index
            alone.append(measure())
        network.answers = None
        metric = next(iter(alone[0]["selection"]))
        best = max(range(len(alone)), key=lambda index: alone[index]["selection"][metric])
        return {"adapters": alone, "best": best}
