"""The contracts a method is written to: an adapted map, an edit of hidden states, a selection of parameters.

A method's life: `attach(model, places)` changes the frozen model; `prepare` may look at some batches first;
training moves what is trainable by then, on a `loss` that is mostly the task's, with a `penalty` beside it and
`on_step` after each step where a method has them; `merge(model)` folds every adapted map into its weight for
evaluation and `unmerge(model)` gives the frozen weight back bit for bit; `report` says what else the record keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neat_bench.errors import InputError, nearest
from neat_bench.methods.adapted import AdaptedMap, adapt, weight_at
from neat_bench.models.roles import ROLES, Place, find_places, head_names, parse_layers


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
    size_kind: ClassVar[str] = "count"
    """What that field is: a count, a share of the entries of the targets, or the number of parameters itself."""
    prepare_batches: ClassVar[int] = 0
    """How many training batches `prepare` looks at."""

    def __post_init__(self) -> None:
        for role in self.targets:
            if role not in ROLES:
                raise InputError(f"method.targets: unknown role '{role}'{nearest(role, ROLES)}")
        if len(set(self.targets)) < len(self.targets):
            raise InputError("method.targets names a role twice")
        parse_layers(self.layers, 1000)

    def sized(self, value: float) -> Self:
        """Return the method with another size; raises InputError for one that it refuses."""
        assert self.size is not None
        return replace(self, **{self.size: value})  # type: ignore[arg-type]

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Add trainable parts at the places of a model that is frozen but for its head."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, batches: list[Any], loss: Callable[[Any], Tensor]) -> None:
        """Look at the first `prepare_batches` training batches and their loss before training starts."""

    def rebuild(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Give a model, to which the method is attached, the structure that a saved state speaks of.

        For a method whose `prepare` decides where things train; mostly nothing.
        """

    def loss(self, task: Any, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch, the task's unless the method has its own."""
        return task.loss(model, batch)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return what is added to the loss of an optimizer step, if anything."""
        return None

    def on_step(self, model: nn.Module, step: int, total: int) -> None:
        """Act after an optimizer step (from 1 to total), while its gradients are still there."""

    def report(self, model: nn.Module, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what the record keeps of the trained model beside the common numbers; mostly nothing.

        measure: evaluates the model as it is now, and returns the metrics of the `selection` and of the `report` part.
        """
        return {}


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


def attach(method: Method, model: nn.Module) -> None:
    """Freeze the model, attach the method, and let the task head train, as it does under every method.

    Raises InputError if the method's targets or sizes do not fit the model.
    """
    head = head_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    method.attach(model, find_places(model, method.targets, method.layers))


def keeps_statistics(module: nn.Module) -> bool:
    """Return whether the module is a batch normalisation whose running statistics training moves."""
    return isinstance(module, _BatchNorm) and module.weight is not None and module.weight.requires_grad


def set_training(model: nn.Module) -> None:
    """Put the model in training mode, but for batch normalisations with frozen weights: those stay as they are."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not keeps_statistics(module):
            module.eval()
