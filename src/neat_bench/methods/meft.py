"""MEFT: the encoder as a reversible network, whose activations are computed again in the backward pass.

x1 ---- * lam --- + ------------------ y1          with swap: (x1, x2) of the next layer = (y2, y1),
                  ^            |                    else (y1, y2)
                 F(x2)        G(y1)
                  |            v
x2 ---------------+-- * beta - + ----- y2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from neat_bench.errors import InputError
from neat_bench.methods.adapters import Adapter, Bottleneck
from neat_bench.methods.base import Method
from neat_bench.models.roles import Place, architecture_of, backbone_of, find_places, hidden_size, parse_layers

ENCODERS = ("bert", "roberta", "xlm-roberta")
STREAM = torch.float64  # undoing a layer divides by lam and beta, and multiplies rounding
TOLERANCE = 1e-3  # of the largest relative error that undoing all layers may come to


class _Random:
    """The state that random numbers are drawn from: taken before a part runs, put back when it runs again."""

    def __init__(self, x: Tensor) -> None:
        self.cpu = torch.get_rng_state()
        self.devices, self.states = get_device_states(x)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw inside what was drawn after the state was taken."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states)
            yield


@dataclass
class _Pass:
    """What the layers of one forward pass are called with, beside the streams, and their random states."""

    arguments: tuple
    options: dict[str, Any]
    autocast: dict[str, Any]
    random: list[tuple[_Random, _Random]]


class ReversibleLayer(nn.Module):
    """The maps F and G of one pretrained layer; see MEFT. Both keep the shape batch x tokens x d."""

    def __init__(self, layer: nn.Module, form: int, adapter: Bottleneck | None) -> None:
        super().__init__()
        self.layer, self.form, self.adapter = layer, form, adapter

    def _layer(self, x: Tensor, arguments: tuple, options: dict[str, Any]) -> Tensor:
        return self.layer(x, *arguments, **options)

    def _adapter(self, x: Tensor) -> Tensor:
        assert self.adapter is not None
        return self.adapter.scale * self.adapter.update(x)

    def F(self, x: Tensor, arguments: tuple, options: dict[str, Any]) -> Tensor:
        """Return the layer (MEFT1), the adapter (MEFT2), or the attention block (MEFT3) of x."""
        if self.form == 1:
            return self._layer(x, arguments, options)
        if self.form == 2:
            return self._adapter(x)
        attention: Any = self.layer.attention
        return attention(x, *arguments[:1], **options)[0]

    def G(self, x: Tensor, arguments: tuple, options: dict[str, Any]) -> Tensor:
        """Return the adapter (MEFT1), the layer (MEFT2), or the feed-forward block (MEFT3) of x."""
        if self.form == 1:
            return self._adapter(x)
        if self.form == 2:
            return self._layer(x, arguments, options)
        feed_forward: Any = self.layer.feed_forward_chunk
        return feed_forward(x)


class ReversibleLayers(nn.Module):
    """The last layers of an encoder as one block; `recompute` false keeps the activations, as autograd does."""

    def __init__(self, layers: list[ReversibleLayer], lam: float, beta: float, swap: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.lam, self.beta, self.swap = lam, beta, swap
        self.recompute = True

    def step(self, index: int, streams: tuple[Tensor, Tensor], of: _Pass, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the streams after a layer, and note the random states it started from."""
        layer: Any = self.layers[index]
        x1, x2 = streams
        before = _Random(x1)
        y1 = self.lam * x1 + layer.F(_cast(x2, dtype), of.arguments, of.options)
        of.random.append((before, _Random(x1)))
        y2 = self.beta * x2 + layer.G(_cast(y1, dtype), of.arguments, of.options)
        return (y2, y1) if self.swap else (y1, y2)

    def undo(
        self, index: int, streams: tuple[Tensor, Tensor], of: _Pass, dtype: torch.dtype, into: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[Tensor | None]]:
        """Return the streams before a layer, the gradients there, and those of its trained parameters.

        streams, into: the streams after the layer and the gradients there.
        """
        layer: Any = self.layers[index]
        (y1, y2), (d1, d2) = ((streams[1], streams[0]), (into[1], into[0])) if self.swap else (streams, into)
        of_F, of_G = of.random[index]
        g, into_y1, by_G = _gradients(layer.G, layer, _cast(y1, dtype), of, of_G, d2.to(dtype))
        x2, d1 = (y2 - g) / self.beta, d1 + into_y1
        f, into_x2, by_F = _gradients(layer.F, layer, _cast(x2, dtype), of, of_F, d1.to(dtype))
        x1 = (y1 - f) / self.lam
        return (
            (x1, x2),
            (self.lam * d1, self.beta * d2 + into_x2),
            [_sum(*pair) for pair in zip(by_F, by_G, strict=True)],
        )

    def forward(self, hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Return the mean of the two streams, both of which start as the hidden states (batch x tokens x d)."""
        kind = hidden.device.type
        autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
        }
        of = _Pass(arguments, options, autocast, [])
        trained = [parameter for layer in self.layers for parameter in trained_in(layer)]
        if self.recompute and torch.is_grad_enabled() and trained:
            return _Reversible.apply(hidden, self, of, *trained)
        return _mean(self.run(hidden, of)).to(hidden.dtype)

    def run(self, hidden: Tensor, of: _Pass, seen: list[tuple[Tensor, Tensor]] | None = None) -> tuple[Tensor, Tensor]:
        """Return the streams after the last layer; `seen` collects those before each."""
        streams = (hidden.to(STREAM),) * 2
        for index in range(len(self.layers)):
            if seen is not None:
                seen.append(streams)
            streams = self.step(index, streams, of, hidden.dtype)
        return streams

    def reconstruction_errors(self, hidden: Tensor, *arguments: Any, **options: Any) -> list[float]:
        """Return the largest relative error of the streams after undoing one layer, two layers and so on."""
        of = _Pass(arguments, options, {"device_type": hidden.device.type, "enabled": False}, [])
        seen: list[tuple[Tensor, Tensor]] = []
        streams = self.run(hidden, of, seen)
        zero, errors = (torch.zeros_like(streams[0]),) * 2, []
        for index in reversed(range(len(self.layers))):
            streams, *_ = self.undo(index, streams, of, hidden.dtype, zero)
            pairs = zip(streams, seen[index], strict=True)
            errors.append(max(((found - true).abs().max() / true.abs().max()).item() for found, true in pairs))
        return errors


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a stream as F or G read it, shifted by less than their precision.

    Sums of a few float32 numbers often lie exactly between two others; unshifted, the least rounding of a recomputed
    stream would turn them the other way.
    """
    return (x * (1 + torch.finfo(dtype).eps / 50)).to(dtype)


def _mean(streams: tuple[Tensor, Tensor]) -> Tensor:
    return (streams[0] + streams[1]) / 2


def trained_in(module: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters of a module."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _gradients(
    part: Callable[..., Tensor], layer: nn.Module, x: Tensor, of: _Pass, random: _Random, gradient: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """Run F or G again at x; return what it gives, and the gradients of x and of the layer's trained parameters."""
    with torch.enable_grad(), random.replayed(), torch.autocast(**of.autocast):
        x = x.detach().requires_grad_()
        y = part(x, of.arguments, of.options)
        into_x, *by = torch.autograd.grad(y, [x, *trained_in(layer)], gradient.to(y.dtype), allow_unused=True)
    return y.detach(), into_x, tuple(by)


class _Reversible(torch.autograd.Function):
    """The layers' forward pass keeping only its end, and the backward pass that undoes them one after the other."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layers: ReversibleLayers, of: _Pass, *trained: Tensor) -> Tensor:
        """Return the mean of the streams."""
        streams = layers.run(hidden, of)
        ctx.layers, ctx.of, ctx.dtype = layers, of, hidden.dtype
        ctx.save_for_backward(*streams)
        return _mean(streams).to(hidden.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the hidden states and of the trained parameters."""
        streams = ctx.saved_tensors
        into = (gradient.to(STREAM) / 2,) * 2
        found: list[Tensor | None] = []
        for index in reversed(range(len(ctx.layers.layers))):
            streams, into, by = ctx.layers.undo(index, streams, ctx.of, ctx.dtype, into)
            found = [*by, *found]
        return (into[0] + into[1]).to(ctx.dtype), None, None, *found


@dataclass(kw_only=True)
class MEFT(Method):
    """MEFT (arXiv 2306.00477, code BaohaoLiao/mefts): y1 = lam x1 + F(x2), y2 = beta x2 + G(y1), layer by layer.

    form 1: F the pretrained layer with an adapter beside its feed-forward, G an adapter; 2: F an adapter, G that
    layer; both swap the streams after each layer. 3: F the attention block with an adapter on its output map, G the
    feed-forward block with an adapter beside it, no swap. x1 = x2 at the start, their mean at the end. The backward
    pass computes x2 = (y2 - G(y1)) / beta and x1 = (y1 - F(x2)) / lam again, random numbers replayed, so the memory
    of activations does not grow with depth. Streams are float64, for rounding grows by 1 / sqrt(lam beta) a layer;
    the record's `method` field holds the relative error of the recomputed streams. layers: the last ones, such as
    "12:"; those before them stay as they were and get no gradient. Encoders of BERT's form only. Initialisation: the
    adapters give zero, yet the streams' mean is not the pretrained output. Parameters per layer: two adapters of
    2 d m + d + m.
    """

    size = "bottleneck"
    starts_at_pretrained = False
    form: int = 1
    bottleneck: int = 32
    scale: float = 1.0
    activation: str = "relu"
    lam: float = 0.1
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in (1, 2, 3):
            raise InputError(f"method.form is 1, 2 or 3, not {self.form}")
        if not 0 < min(self.lam, self.beta) <= max(self.lam, self.beta) <= 1:
            raise InputError("method.lam and method.beta lie above 0 and at most at 1")
        if self.targets:
            raise InputError(f"{self.name} adapts whole layers: method.targets stays empty, use method.layers")
        self._adapter()  # which checks its own fields

    def _adapter(self, targets: list[str] | None = None, parallel: bool = True) -> Adapter:
        return Adapter(
            name=self.name,
            label=self.label,
            targets=targets or ["mlp_down"],
            layers=self.layers,
            bottleneck=self.bottleneck,
            scale=self.scale,
            activation=self.activation,
            parallel=parallel,
        )

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Make the chosen layers reversible; raises InputError for another model than an encoder of BERT's form."""
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if kind not in ENCODERS:
            raise InputError(f"{self.name} is for encoders of BERT's form ({', '.join(ENCODERS)}), not {kind}")
        _, backbone = backbone_of(model)
        parent_path, _, name = architecture_of(model).blocks.rpartition(".")
        parent = backbone.get_submodule(parent_path)
        layers = list(getattr(parent, name))
        chosen = parse_layers(self.layers, len(layers))
        if chosen.stop != len(layers):
            raise InputError(f"method.layers of {self.name} are the model's last ones, such as '{chosen.start}:'")
        rounding, growth = torch.finfo(STREAM).eps, (self.lam * self.beta) ** -0.5
        if rounding * growth ** len(chosen) > TOLERANCE:
            most = int(math.log(TOLERANCE / rounding, growth))
            raise InputError(
                f"{self.name} cannot undo {len(chosen)} layers with lam={self.lam} and beta={self.beta}: rounding "
                f"grows {growth:.3g} times a layer; take the last {most}: method.layers='{len(layers) - most}:'"
            )
        for targets, parallel in (["mlp_down"], True), *([(["output"], False)] if self.form == 3 else []):
            self._adapter(targets, parallel).attach(model, find_places(model, targets, self.layers))
        size = hidden_size(model)
        device = next(backbone.parameters()).device
        reversible = []
        for layer in layers[chosen.start :]:
            adapter = None if self.form == 3 else self._adapter().make_edit(size).to(device)
            reversible.append(ReversibleLayer(layer, self.form, adapter))
        stack = ReversibleLayers(reversible, self.lam, self.beta, swap=self.form != 3)
        setattr(parent, name, nn.ModuleList([*layers[: chosen.start], stack]))

    @torch.no_grad()
    def report(self, model: nn.Module, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the largest relative error of the streams when the layers are undone, the last layer's first."""
        stack = next(module for module in model.modules() if isinstance(module, ReversibleLayers))
        called: dict[str, Any] = {}
        hook = stack.register_forward_pre_hook(lambda _, a, o: called.update(arguments=a, options=o), with_kwargs=True)
        measure()
        hook.remove()
        model.eval()
        return {"reconstruction_error": stack.reconstruction_errors(*called["arguments"], **called["options"])}
