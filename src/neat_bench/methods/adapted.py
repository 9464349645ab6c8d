"""Adapted maps: what a method makes of a frozen linear layer, applied beside it or folded into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neat_bench.errors import InputError
from neat_bench.models.roles import Place


class LinearRows:
    """Some output rows of a linear layer, with the face of a layer of its own."""

    def __init__(self, linear: nn.Linear, rows: tuple[int, int]) -> None:
        self._linear, self._rows = linear, slice(*rows)

    @property
    def weight(self) -> Tensor:
        """The rows of the weight, rows x in."""
        return self._linear.weight[self._rows]

    @property
    def bias(self) -> Tensor | None:
        """The rows of the bias, or None."""
        return None if self._linear.bias is None else self._linear.bias[self._rows]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the rows to ... x in."""
        return F.linear(x, self.weight, self.bias)


def is_quantised(linear: nn.Module) -> bool:
    """Return whether a layer's weight is bitsandbytes' 8 or 4 bits."""
    return type(getattr(linear, "weight", None)).__name__ in ("Params4bit", "Int8Params")


class QuantisedLinear:
    """A quantised linear layer with the face of a plain one: its weight is dequantised wherever it is asked for."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    @property
    def weight(self) -> Tensor:
        """The weight in floating point, out x in, made anew; nothing keeps it."""
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        weight: Any = self._linear.weight
        return dequantize_bnb_weight(weight, getattr(self._linear, "state", None))

    @property
    def bias(self) -> Tensor | None:
        """The bias, or None."""
        return self._linear.bias

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer to ... x in, by its own kernels."""
        return self._linear(x)


Face = nn.Linear | LinearRows | QuantisedLinear


def face_of(linear: nn.Linear) -> nn.Linear | QuantisedLinear:
    """Return the layer, or what stands for it where it is quantised."""
    return QuantisedLinear(linear) if is_quantised(linear) else linear


@dataclass
class _OnceAStep:
    """What `AdaptedMap.shared` keeps in an optimizer step: a value, and a copy that collects its gradient."""

    value: Tensor | None = None
    copy: Tensor | None = None
    last: bool = False


class AdaptedMap(nn.Module):
    """What a method makes of one frozen linear map y = x W^T + b (W: out x in)."""

    _once: _OnceAStep | None = None

    mergeable: ClassVar[bool] = True
    """Whether `merged` exists: not for maps that read more than their own input."""

    def restore(self, weight: Tensor) -> None:
        """Put the frozen weight (out x in) into the state that the loaded buffers speak of; mostly nothing."""

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight (out x in) and bias (out) that the adapted map amounts to."""
        raise NotImplementedError

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply the adapted map to x (... x in); override where that is cheaper than through `merged`."""
        return F.linear(x, *self.merged(linear.weight, linear.bias))

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return what depends on parameters and the frozen weight alone, not on an input (such as NEAT's Z)."""
        raise NotImplementedError

    def _of(self, linear: Face) -> Tensor:
        """Return `of_weight` of a layer; a quantised weight is made again in backward rather than kept."""
        if isinstance(linear, QuantisedLinear):
            return checkpoint(lambda: self.of_weight(linear.weight), use_reentrant=False)
        return self.of_weight(linear.weight)

    def shared(self, linear: Face) -> Tensor:
        """Return `of_weight` of the layer's weight, computed once in an optimizer step of several micro-batches.

        The earlier micro-batches collect its gradient on a copy; in the last one's backward pass the sum of
        all goes through the computation, once.
        """
        once = self._once
        if once is None:
            return self._of(linear)
        if once.value is None:
            with torch.enable_grad():
                once.value = self._of(linear)
            once.copy = once.value.detach().requires_grad_() if once.value.requires_grad else None
        if once.copy is None:
            return once.value
        if not once.last:
            return once.copy
        if once.copy.grad is not None:
            collected, once.copy.grad = once.copy.grad, None
            once.value.register_hook(lambda gradient: gradient + collected)
        return once.value

    def begin(self, micro_batch: int, of: int) -> None:
        """Say which micro-batch of the optimizer step comes next (from 0) and how many it has."""
        if micro_batch == 0:
            self._once = _OnceAStep() if of > 1 else None
        if self._once is not None:
            self._once.last = micro_batch == of - 1


class DeltaMap(AdaptedMap):
    """A map whose `of_weight` is the whole update, out x in, put together once an optimizer step."""

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + dW."""
        return weight + self.of_weight(weight).to(weight.dtype), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x (W0 + dW)^T + b."""
        weight = linear.weight
        return F.linear(x, weight + self.shared(linear).to(weight.dtype), linear.bias)


class AdaptedLinear(nn.Module):
    """A frozen linear layer with an adapted map on all its output rows, or several on parts of them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        quantised: Any = base
        if hasattr(quantised, "support_avx512bf16_for_cpu"):
            # bitsandbytes' kernel for CPUs repacks a 4-bit weight at the first evaluation: what is dequantised after
            # that is not the weight any more
            quantised.support_avx512bf16_for_cpu = False
        self.maps = nn.ModuleDict()
        self._rows: dict[str, tuple[int, int] | None] = {}
        self._pretrained: tuple[Tensor, Tensor | None] | None = None

    def add(self, role: str, rows: tuple[int, int] | None, adapted: AdaptedMap) -> None:
        """Put a map on the given rows (None: all), on the layer's device and in its mode."""
        self.maps[role] = adapted.to(self.base.weight.device)
        self.train(self.base.training)
        self._rows[role] = rows

    def rows_of(self, role: str) -> tuple[int, int] | None:
        """Return the output rows that a role's map owns, None for all."""
        return self._rows[role]

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for code that asks a layer for its dtype or shape."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias

    def _parts(self) -> Iterator[tuple[LinearRows, AdaptedMap | None, slice]]:
        """Yield the layer cut into its adapted rows and the rows between them, in order."""
        at = 0
        owned = sorted((rows, role) for role, rows in self._rows.items() if rows is not None)
        for rows, role in [*owned, ((self.base.out_features,) * 2, None)]:
            if rows[0] > at:
                yield LinearRows(self.base, (at, rows[0])), None, slice(at, rows[0])
            if role is not None:
                yield LinearRows(self.base, rows), self.maps[role], slice(*rows)  # type: ignore[misc]
            at = rows[1]

    def _whole(self) -> AdaptedMap | None:
        """Return the map that owns every row, if one does."""
        role = next((role for role, rows in self._rows.items() if rows is None), None)
        return None if role is None else self.maps[role]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the adapted layer to x (... x in)."""
        if self._pretrained is not None:
            return self.base(x)
        whole = self._whole()
        if whole is not None:
            return whole(x, face_of(self.base))
        return torch.cat([part(x) if m is None else m(x, part) for part, m, _ in self._parts()], dim=-1)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the maps into the layer, keeping a copy of its weight and bias.

        Those that cannot be folded stay beside it, and so do all on a quantised layer, which has no room for them.
        """
        base = self.base
        if is_quantised(base) or not all(adapted.mergeable for adapted in self.maps.values()):
            return
        self._pretrained = (
            base.weight.detach().clone(),
            None if base.bias is None else base.bias.detach().clone(),
        )
        whole = self._whole()
        if whole is not None:
            weight, bias = whole.merged(base.weight, base.bias)
            base.weight.copy_(weight)
            if bias is not None and base.bias is None:
                base.bias = nn.Parameter(bias.clone(), requires_grad=False)
            elif bias is not None:
                base.bias.copy_(bias)
            return
        for part, adapted, rows in list(self._parts()):
            if adapted is None:
                continue
            weight, bias = adapted.merged(part.weight, part.bias)
            base.weight[rows] = weight
            if bias is not None and base.bias is None:
                base.bias = nn.Parameter(base.weight.new_zeros(base.out_features), requires_grad=False)
            if bias is not None:
                base.bias[rows] = bias

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the layer its pretrained weight and bias back, bit for bit."""
        if self._pretrained is None:
            return
        weight, bias = self._pretrained
        self.base.weight.copy_(weight)
        if bias is None:
            self.base.bias = None  # type: ignore[assignment]
        else:
            self.base.bias.copy_(bias)
        self._pretrained = None


def adapt(model: nn.Module, place: Place, adapted: AdaptedMap) -> None:
    """Put an adapted map at a place, wrapping its linear layer on first use."""
    parent_path, _, name = place.path.rpartition(".")
    parent = model.get_submodule(parent_path)
    layer = getattr(parent, name)
    if not isinstance(layer, AdaptedLinear):
        if not isinstance(layer, nn.Linear):
            raise InputError(f"{place.path} is a {type(layer).__name__}; this method adapts linear layers")
        layer = AdaptedLinear(layer)
        setattr(parent, name, layer)
    layer.add(place.role, place.rows, adapted)


def weight_at(place: Place, method: str) -> Tensor:
    """Return the weight (out x in, a view) that a place owns; raises InputError where it is no linear layer."""
    linear = place.module
    if not isinstance(linear, nn.Linear):
        raise InputError(f"{method} adapts linear layers; {place.path} is a {type(linear).__name__}")
    return face_of(linear).weight if place.rows is None else LinearRows(linear, place.rows).weight


Map = TypeVar("Map", bound=AdaptedMap)


def adapted_maps(model: nn.Module, kind: type[Map]) -> list[Map]:
    """Return every adapted map of a kind in the model."""
    return [module for module in model.modules() if isinstance(module, kind)]


def _adapted_layers(model: nn.Module) -> list[AdaptedLinear]:
    return [module for module in model.modules() if isinstance(module, AdaptedLinear)]


def layers_of(model: nn.Module) -> Iterator[tuple[AdaptedLinear, str, AdaptedMap, Tensor]]:
    """Yield each adapted map with its layer, its role there, and the frozen weight (a view) that it owns."""
    for layer in _adapted_layers(model):
        for role, adapted in layer.maps.items():
            rows = layer.rows_of(role)
            weight = face_of(layer.base).weight if rows is None else LinearRows(layer.base, rows).weight
            yield layer, role, adapted, weight  # type: ignore[misc]


def merge(model: nn.Module) -> None:
    """Fold every adapted map into its layer's weight."""
    for layer in _adapted_layers(model):
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, bit for bit."""
    for layer in _adapted_layers(model):
        layer.unmerge()


def unwrap(model: nn.Module) -> None:
    """Merge for good: the layers are plain again, and what cannot be merged is left as it is."""
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, AdaptedLinear):
            continue
        layer.merge()
        if layer._pretrained is not None:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.base)
