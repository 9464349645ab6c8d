"""Adapters in Hugging Face peft's format: ours written for peft.PeftModel, theirs read into ours.

A form says which peft config computes what a method of ours computes, and under which names peft keeps what an
adapted map holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.files import sha256_of_file
from neat_bench.methods.adalora import AdaLoRA
from neat_bench.methods.adapted import AdaptedLinear, AdaptedMap
from neat_bench.methods.base import Method
from neat_bench.methods.dora import DoRA
from neat_bench.methods.fourierft import FourierFT
from neat_bench.methods.ia3 import IA3
from neat_bench.methods.lora import LoRA
from neat_bench.methods.lora_ga import LoRAGA, LoRAGAMap
from neat_bench.methods.neat import NEAT
from neat_bench.methods.pissa import PiSSA
from neat_bench.methods.state import WEIGHTS as OUR_WEIGHTS
from neat_bench.methods.state import load_state
from neat_bench.methods.vera import VeRA
from neat_bench.models.roles import head_names

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEANUT_ACTIVATIONS = {"identity": "linear", **{n: n for n in ("relu", "gelu", "tanh", "sigmoid", "leaky_relu")}}

Start = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """config: peft's class name and options. tensors: peft's names, after the layer's path -> what a map holds.

    start: what the map held before it was trained, for methods that took it out of the base. Of a form that reads,
    the tensors are the map's own parameters.
    """

    config: Callable[[Any], dict[str, Any]]
    tensors: Callable[[Any, Start], dict[str, Tensor]]
    reads: bool = False


def _lora_config(method: LoRA, **more: Any) -> dict[str, Any]:
    return {
        "class": "LoraConfig",
        "r": method.rank,
        "lora_alpha": method.alpha,
        "use_rslora": method.rank_stabilised,
        "lora_dropout": method.dropout,
    } | more


def _difference_config(method: LoRA) -> dict[str, Any]:
    """LoRA of twice the rank on the pretrained weight: what was learned less what the base lost."""
    return _lora_config(method, r=2 * method.rank, lora_alpha=method.scale * 2 * method.rank, use_rslora=False)


def _difference(adapted: Any, start: Start) -> dict[str, Tensor]:
    A, B = torch.cat([adapted.A, start["A"]]), torch.cat([adapted.B, -start["B"]], dim=1)
    return {"lora_A.weight": A, "lora_B.weight": B}


def _peanut_config(method: NEAT) -> dict[str, Any]:
    if method.activation not in PEANUT_ACTIVATIONS:
        raise InputError(f"peft's PEANuT has no activation '{method.activation}'")
    return {
        "class": "PeanutConfig",
        "r": method.rank,
        "depth": (method.depth - 2) // 2,  # theirs counts the encoders
        "act_fn": PEANUT_ACTIVATIONS[method.activation],
        "scaling": method.scale,
    }


def _peanut(adapted: Any, start: Start) -> dict[str, Tensor]:
    found = {"peanut_A.weight": adapted.A.weight, "peanut_B.weight": adapted.B}
    for part in ("encoders", "decoders"):
        found |= {f"peanut_{part}.{i}.weight": inner.weight for i, inner in enumerate(getattr(adapted, part))}
    return found


def _adalora_config(method: AdaLoRA) -> dict[str, Any]:
    return {
        "class": "AdaLoraConfig",
        "init_r": method.rank,
        "target_r": method.target_rank,
        "lora_alpha": method.alpha,
        "total_step": 1,
    }


FORMS: dict[type[Method], Form] = {
    LoRA: Form(_lora_config, lambda m, _: {"lora_A.weight": m.A, "lora_B.weight": m.B}, reads=True),
    DoRA: Form(
        lambda method: _lora_config(method, use_dora=True),
        lambda m, _: {"lora_A.weight": m.A, "lora_B.weight": m.B, "lora_magnitude_vector": m.magnitude},
        reads=True,
    ),
    NEAT: Form(_peanut_config, _peanut, reads=True),
    PiSSA: Form(_difference_config, _difference),
    LoRAGA: Form(_difference_config, _difference),
    AdaLoRA: Form(_adalora_config, lambda m, _: {"lora_A": m.Q, "lora_B": m.P, "lora_E": m.e[:, None]}),
    VeRA: Form(
        lambda method: {"class": "VeraConfig", "r": method.rank, "d_initial": method.d_initial,
                        "vera_dropout": method.dropout},
        lambda m, _: {"vera_lambda_d": m.d, "vera_lambda_b": m.b, "vera_A": m.A, "vera_B": m.B},
    ),
    FourierFT: Form(
        lambda method: {"class": "FourierFTConfig", "n_frequency": method.count, "scaling": method.scale,
                        "random_loc_seed": method.place_seed},
        lambda m, _: {"fourierft_spectrum": m.spectrum},
    ),
    IA3: Form(
        lambda method: {"class": "IA3Config"},
        lambda m, _: {"ia3_l": m.factors[:, None] if type(m).__name__ == "IA3OutputMap" else m.factors[None]},
    ),
}  # fmt: skip


def _form(method: Method) -> Form:
    if type(method) not in FORMS:
        known = ", ".join(sorted(kind.__name__ for kind in FORMS))
        raise InputError(f"peft has no form of {method.name}; there is one of {known}")
    return FORMS[type(method)]


def _maps(model: nn.Module) -> Iterator[tuple[str, str, AdaptedMap]]:
    """Yield path, role and map of every adapted layer; raises InputError for a part of a fused matrix."""
    for path, layer in model.named_modules():
        if isinstance(layer, AdaptedLinear):
            for role, adapted in layer.maps.items():
                if layer.rows_of(role) is not None:
                    raise InputError(f"peft cannot adapt a part of {path} (a fused matrix)")
                yield path, role, adapted  # type: ignore[misc]


def start_of(model: nn.Module) -> dict[str, Start]:
    """Return what every map with LoRA's factors holds now: call it before a state is loaded into them."""
    found = {}
    for path, _, adapted in _maps(model):
        if hasattr(adapted, "A") and isinstance(adapted.A, Tensor):
            # LoRA-GA keeps its start beside the factors, where loading will put the right one
            kept = isinstance(adapted, LoRAGAMap)
            found[path] = {n: getattr(adapted, n + "0") if kept else getattr(adapted, n).detach().clone() for n in "AB"}
    return found


def _inside(layer: Any, name: str) -> Tensor:
    """Return peft's tensor of the default adapter, from a name such as lora_A.weight."""
    first, *rest = name.split(".")
    found = getattr(layer, first)["default"]
    for part in rest:
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found if isinstance(found, Tensor) else found.weight


@torch.no_grad()
def to_peft(method: Method, model: nn.Module, start: dict[str, Start], base: nn.Module, heads: list[str]) -> Any:
    """Return peft's model on `base` (the pretrained model with a head of the same size) that computes what ours does.

    start: `start_of` the model before its state was loaded. heads: modules that were trained whole. Raises InputError
    for a method that peft does not have.
    """
    import peft

    form, maps = _form(method), list(_maps(model))
    options = form.config(method)
    kind = getattr(peft, options.pop("class"))
    if kind is peft.IA3Config:
        options["feedforward_modules"] = [path for path, role, _ in maps if role == "mlp_down"]
    config = kind(target_modules=[path for path, *_ in maps], modules_to_save=heads or None, **options)
    theirs = peft.get_peft_model(base, config).to(next(model.parameters()).device)
    for path, _, adapted in maps:
        layer = theirs.base_model.model.get_submodule(path)
        for name, value in form.tensors(adapted, start.get(path, {})).items():
            _inside(layer, name).copy_(value)
    for head in heads:
        copied = theirs.base_model.model.get_submodule(head).modules_to_save["default"]
        copied.load_state_dict(model.get_submodule(head).state_dict())
    return theirs.eval()


@torch.no_grad()
def read_peft(folder: Path, method: Method, model: nn.Module) -> None:
    """Copy a LoRA, DoRA or PEANuT adapter that peft saved into a model that has the same method of ours.

    The head comes along where its sizes are the model's. Raises InputError where files, settings or places differ.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    form = _form(method)
    if not form.reads:
        raise InputError(f"peft's adapters can be read for lora, dora and neat, not for {method.name}")
    try:
        settings = json.loads((folder / CONFIG).read_text())
        state = load_file(folder / WEIGHTS)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise InputError(f"cannot read peft's adapter in {folder}: {error}") from None
    wanted = form.config(method)
    kind = wanted.pop("class").removesuffix("Config").upper()
    if settings.get("peft_type") != kind:
        raise InputError(f"{folder} holds a {settings.get('peft_type')} adapter; {method.name} reads {kind}")
    for name, value in wanted.items():
        if "dropout" not in name and settings.get(name) != value:
            raise InputError(f"{folder} was trained with {name}={settings.get(name)}; here it is {value}")
    own: dict[str, Tensor] = {}
    for path, _, adapted in _maps(model):
        own |= {f"base_model.model.{path}.{name}": value for name, value in form.tensors(adapted, {}).items()}
    if missing := sorted(own.keys() - state.keys()):
        raise InputError(f"{folder} has nothing for {missing[0]}: choose its places with method.targets and layers")
    head = {f"base_model.model.{name}": model.get_parameter(name) for name in head_names(model)}
    if left := sorted(state.keys() - own.keys() - head.keys()):
        raise InputError(f"{folder} also adapts {left[0]}: choose its places with method.targets and layers")
    if head.keys() <= state.keys() and all(state[name].shape == value.shape for name, value in head.items()):
        own |= head
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise InputError(f"{folder}: {name} is {tuple(state[name].shape)}, here {tuple(value.shape)}")
        value.copy_(state[name])


def start_from(folder: Path, method: Method, model: nn.Module) -> str:
    """Copy a saved adapter, ours or peft's, into a model that has its method; return the file's sha256.

    Raises InputError where the adapter is of another method, or the method makes its own start.
    """
    if method.prepare_batches:
        raise InputError(f"{method.name} finds its start in training batches: it cannot start_from a saved adapter")
    if (folder / CONFIG).is_file():
        read_peft(folder, method, model)
        return sha256_of_file(folder / WEIGHTS)
    load_state(folder, method, model, any_head=True)
    return sha256_of_file(folder / OUR_WEIGHTS)
