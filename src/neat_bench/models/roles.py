"""From roles (query, key, value, output, mlp_up, mlp_gate, mlp_down, block) to modules, per architecture."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from neat_bench.errors import InputError, nearest


@dataclass(frozen=True)
class Architecture:
    """Where a family of models keeps its transformer blocks and, within a block, its linear maps.

    blocks: path of the list of blocks. modules: role -> path within a block. fused: for roles that
    share one matrix, role -> (position, number of equal parts) along its output rows.
    """

    blocks: str
    modules: dict[str, str]
    fused: dict[str, tuple[int, int]]


def _named(blocks: str, attention: tuple[str, str, str, str], **mlp: str) -> Architecture:
    return Architecture(blocks, dict(zip(("query", "key", "value", "output"), attention, strict=True)) | mlp, {})


_ATTENTION_PROJ = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
_SELF_ATTN_PROJ = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_BERT = _named(
    "encoder.layer",
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    mlp_up="intermediate.dense",
    mlp_down="output.dense",
)
_LLAMA = _named(
    "layers",
    _SELF_ATTN_PROJ,
    mlp_up="mlp.up_proj",
    mlp_gate="mlp.gate_proj",
    mlp_down="mlp.down_proj",
)
_MLP_FC = {"mlp_up": "mlp.fc1", "mlp_down": "mlp.fc2"}
_TIMM_VIT = Architecture(
    "blocks",
    {"query": "attn.qkv", "key": "attn.qkv", "value": "attn.qkv", "output": "attn.proj"} | _MLP_FC,
    {"query": (0, 3), "key": (1, 3), "value": (2, 3)},
)

# transformers' config.model_type, or "timm:<class>"
ARCHITECTURES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "vit": _named("layers", _ATTENTION_PROJ, **_MLP_FC),
    "dinov2": _named("encoder.layer", _ATTENTION_PROJ, **_MLP_FC),
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "timm:VisionTransformer": _TIMM_VIT,
}
ROLES = ("query", "key", "value", "output", "mlp_up", "mlp_gate", "mlp_down", "block")


@dataclass(frozen=True)
class Place:
    """One module a method may adapt: its role, the block's index, its path in the model.

    rows is the part of the output rows that the role owns in a fused matrix, or None for all.
    """

    role: str
    layer: int
    path: str
    module: nn.Module
    rows: tuple[int, int] | None = None


def backbone_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the path prefix ("bert.", or "" for timm models) and the module without the task head."""
    prefix = getattr(model, "base_model_prefix", "")
    return (f"{prefix}.", getattr(model, prefix)) if prefix else ("", model)


def head_names(model: nn.Module) -> set[str]:
    """Return the names of the task head's parameters, which train under every method.

    They are those outside transformers' base model, or timm's classifier. A language model's output
    embedding is part of the pretrained model, not a task head.
    """
    prefix, _ = backbone_of(model)
    if prefix:
        names = {name for name, _ in model.named_parameters()}
        return {name for name in names if not name.startswith((prefix, "lm_head."))}
    head = {id(parameter) for parameter in model.get_classifier().parameters()}  # type: ignore[operator]
    return {name for name, parameter in model.named_parameters() if id(parameter) in head}


def architecture_of(model: nn.Module) -> Architecture:
    """Return the model's architecture; raises InputError for a family without a map."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None) or f"timm:{type(model).__name__}"
    if kind not in ARCHITECTURES:
        raise InputError(
            f"no map from roles to modules for '{kind}' models (models/roles.py){nearest(kind, ARCHITECTURES)}"
        )
    return ARCHITECTURES[kind]


def parse_layers(layers: str | None, count: int) -> range:
    """Return the block indices that "start:stop" (a Python slice; either may be left out) selects of `count`.

    None selects all. Raises InputError for another form or an empty selection.
    """
    if layers is None:
        return range(count)
    match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", layers)
    if match is None:
        raise InputError(f"method.layers is a range such as '4:' or '2:6', not '{layers}'")
    chosen = range(count)[slice(*(int(part) if part else None for part in match.groups()))]
    if not chosen:
        raise InputError(f"method.layers '{layers}' selects none of the model's {count} layers")
    return chosen


def find_places(model: nn.Module, targets: list[str], layers: str | None) -> list[Place]:
    """Return the places of the target roles in the chosen blocks, in the order of blocks, then of targets.

    Raises InputError, listing what there is, for a role that the architecture does not have.
    """
    if not targets:
        return []
    architecture = architecture_of(model)
    prefix, backbone = backbone_of(model)
    present = [*architecture.modules, "block"]
    for role in targets:
        if role not in present:
            raise InputError(f"method.targets: this model has no '{role}'; it has {', '.join(present)}")
    blocks = backbone.get_submodule(architecture.blocks)
    places = []
    for layer in parse_layers(layers, len(list(blocks.children()))):
        for role in targets:
            inner = architecture.modules.get(role)
            path = ".".join(filter(None, (architecture.blocks, str(layer), inner)))
            module = backbone.get_submodule(path)
            rows = None
            if role in architecture.fused:
                assert isinstance(module, nn.Linear)
                position, parts = architecture.fused[role]
                size = module.out_features // parts
                rows = (position * size, (position + 1) * size)
            places.append(Place(role, layer, prefix + path, module, rows))
    return places


def hidden_size(model: nn.Module) -> int:
    """Return the width of the model's hidden states: the rows of its first feed-forward's last map."""
    module = find_places(model, ["mlp_down"], "0:1")[0].module
    assert isinstance(module, nn.Linear)
    return module.out_features
