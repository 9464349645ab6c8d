"""The contracts a method is written to: an adapted map, an edit of hidden states, a selection of parameters.

A method's life: `attach(model, places)` changes the frozen model; `prepare` may look at some batches first;
training moves what `attach` left trainable, with a `penalty` beside the loss and `on_step` after each step
where a method has them; `merge(model)` folds every adapted map into its weight for evaluation and
`unmerge(model)` gives the frozen weight back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neat_bench.errors import InputError, nearest
from neat_bench.models.roles import ROLES, Place, find_places, head_names, parse_layers


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

    def forward(self, x: Tensor, linear: nn.Linear | LinearRows) -> Tensor:
        """Apply the adapted map to x (... x in); override where that is cheaper than through `merged`."""
        return F.linear(x, *self.merged(linear.weight, linear.bias))

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return what depends on parameters and the frozen weight alone, not on an input (such as NEAT's Z)."""
        raise NotImplementedError

    def shared(self, weight: Tensor) -> Tensor:
        """Return `of_weight(weight)`, computed once in an optimizer step of several micro-batches.

        The earlier micro-batches collect its gradient on a copy; in the last one's backward pass the sum of
        all goes through the computation, once.
        """
        once = self._once
        if once is None:
            return self.of_weight(weight)
        if once.value is None:
            with torch.enable_grad():
                once.value = self.of_weight(weight)
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


class AdaptedLinear(nn.Module):
    """A frozen linear layer with an adapted map on all its output rows, or several on parts of them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
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
            return whole(x, self.base)
        return torch.cat([part(x) if m is None else m(x, part) for part, m, _ in self._parts()], dim=-1)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the maps into the layer, keeping a copy of its weight and bias; one that cannot stays beside it."""
        base = self.base
        if not all(adapted.mergeable for adapted in self.maps.values()):
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


@dataclass(kw_only=True)
class Method:
    """A method and its hyperparameters; the constructor only stores and checks them.

    targets: the roles it adapts. layers: a range of blocks such as "4:", None for all.
    """

    name: str
    label: str
    targets: list[str] = field(default_factory=list)
    layers: str | None = None

    starts_at_pretrained: ClassVar[bool] = True
    """Whether step 0 leaves every output as it was."""
    size: ClassVar[str | None] = None
    """The field that a parameter budget solves for; None where the size is fixed."""
    prepare_batches: ClassVar[int] = 0
    """How many training batches `prepare` looks at."""

    def __post_init__(self) -> None:
        for role in self.targets:
            if role not in ROLES:
                raise InputError(f"method.targets: unknown role '{role}'{nearest(role, ROLES)}")
        if len(set(self.targets)) < len(self.targets):
            raise InputError("method.targets names a role twice")
        parse_layers(self.layers, 1000)

    @property
    def value_of_size(self) -> Any:
        """What the field that a budget solves for holds; a number between 0 and 1 is a share of the entries."""
        return None if self.size is None else getattr(self, self.size)

    def sized(self, value: float) -> Self:
        """Return the method with another size; raises InputError for one that it refuses."""
        assert self.size is not None
        return replace(self, **{self.size: value})  # type: ignore[arg-type]

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Add trainable parts at the places of a model that is frozen but for its head."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, batches: list[Any], loss: Callable[[Any], Tensor]) -> None:
        """Look at the first `prepare_batches` training batches and their loss before training starts."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return what is added to the loss of an optimizer step, if anything."""
        return None

    def on_step(self, model: nn.Module, step: int, total: int) -> None:
        """Act after an optimizer step (from 1 to total), while its gradients are still there."""


@dataclass(kw_only=True)
class MapMethod(Method):
    """A method that gives each place an adapted map of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise InputError(f"method.targets of {self.name} is empty; valid: {', '.join(ROLES)}")

    def make_map(self, place: Place, weight: Tensor) -> AdaptedMap:
        """Return the map for a place whose frozen weight (its own rows, out x in) is given."""
        raise NotImplementedError

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Put a map at every place."""
        for place in places:
            adapt(model, place, self.make_map(place, weight_at(place, self.name)))


def weight_at(place: Place, method: str) -> Tensor:
    """Return the weight (out x in, a view) that a place owns; raises InputError where it is no linear layer."""
    linear = place.module
    if not isinstance(linear, nn.Linear):
        raise InputError(f"{method} adapts linear layers; {place.path} is a {type(linear).__name__}")
    return linear.weight if place.rows is None else LinearRows(linear, place.rows).weight


def check_rank(rank: int, place: Place, weight: Tensor) -> None:
    """Raise InputError for a rank that does not fit the weight (out x in) at a place."""
    if rank > min(weight.shape):
        raise InputError(
            f"method.rank={rank} is larger than the matrix at {place.path} ({weight.shape[0]} x "
            f"{weight.shape[1]}): use at most {min(weight.shape)}"
        )


def attach(method: Method, model: nn.Module) -> None:
    """Freeze the model, attach the method, and let the task head train, as it does under every method.

    Raises InputError if the method's targets or sizes do not fit the model.
    """
    head = head_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    method.attach(model, find_places(model, method.targets, method.layers))


Map = TypeVar("Map", bound=AdaptedMap)


def keeps_statistics(module: nn.Module) -> bool:
    """Return whether the module is a batch normalisation whose running statistics training moves."""
    return isinstance(module, _BatchNorm) and module.weight is not None and module.weight.requires_grad


def set_training(model: nn.Module) -> None:
    """Put the model in training mode, but for batch normalisations with frozen weights: those stay as they are."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not keeps_statistics(module):
            module.eval()


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
            weight = layer.base.weight if rows is None else LinearRows(layer.base, rows).weight
            yield layer, role, adapted, weight  # type: ignore[misc]


def merge(model: nn.Module) -> None:
    """Fold every adapted map into its layer's weight."""
    for layer in _adapted_layers(model):
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, bit for bit."""
    for layer in _adapted_layers(model):
        layer.unmerge()
