"""What a method learned, as safetensors beside a config JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neat_bench.errors import InputError
from neat_bench.files import write_whole
from neat_bench.methods.adapted import AdaptedMap, layers_of
from neat_bench.methods.base import Method, keeps_statistics
from neat_bench.methods.hidden import HiddenEdit
from neat_bench.models.roles import head_names
from neat_bench.secrets import redacted

WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a run must keep: trainable parameters (head included, shared ones once), the running statistics
    of normalisations that train, and the buffers that a method's maps keep.
    """
    found = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    for path, module in model.named_modules():
        if keeps_statistics(module):
            found |= {f"{path}.{name}": buffer for name, buffer in module.named_buffers()}
        elif isinstance(module, (AdaptedMap, HiddenEdit)):
            kept = module.state_dict(keep_vars=True)
            found |= {f"{path}.{name}": kept[name] for name, _ in module.named_buffers() if name in kept}
    return found


def is_sharded(model: nn.Module) -> bool:
    """Return whether the model's weights lie in parts on several devices (FSDP)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies on the CPU of what training moves; for a sharded model all processes must call it."""
    whole = {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in trained_tensors(model).items()}
    return {name: value.to("cpu", copy=True).contiguous() for name, value in whole.items()}


def save_state(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write the state and the plain-data config it was trained under; raises InputError on a full disk."""
    from safetensors.torch import save_file

    write_whole(folder / WEIGHTS, lambda path: save_file(state, path))
    text = json.dumps(redacted(config), indent=2, sort_keys=True)
    write_whole(folder / CONFIG, lambda path: path.write_text(text + "\n"))


def load_state(folder: Path, method: Method, model: nn.Module, any_head: bool = False) -> None:
    """Copy a saved state into a model to which the same method was attached.

    any_head: leave the model's head as it is where the saved one has other sizes (that of another task).
    Raises InputError where file and model do not hold the same trainable parameters.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {folder / WEIGHTS}: {error}") from None
    put_state(state, method, model, f"{folder / WEIGHTS}", any_head)


def put_state(state: dict[str, Tensor], method: Method, model: nn.Module, where: str, any_head: bool = False) -> None:
    """Copy a state into a model to which the same method was attached; `where` is its name in messages."""
    method.rebuild(model, state)
    own = trained_tensors(model)
    for name in head_names(model) & state.keys() if any_head else ():
        if state[name].shape != own[name].shape:
            del state[name], own[name]
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
        odd = sorted(state.keys() ^ own.keys())[:3] or "shapes"
        raise InputError(f"{where} is of another model or method ({odd} differ)")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
        for _, _, adapted, weight in layers_of(model):
            adapted.restore(weight)
