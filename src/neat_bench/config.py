"""From composed YAML to checked, typed objects, once; the rest of the code never sees a DictConfig."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neat_bench.data.spec import DatasetSpec
from neat_bench.errors import InputError, nearest
from neat_bench.evaluation.protocols import Protocol
from neat_bench.models.pretrained import Pretrained
from neat_bench.results.loggers import Logger
from neat_bench.training.optimizers import Optimizer
from neat_bench.training.schedules import Schedule
from neat_bench.training.settings import CheckpointSettings, Seeds, TrainerSettings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LAUNCHERS = ("local", "slurm", "ray")
CHOICES = {"resume": ("auto", "never"), "on_oom": ("fail", "halve")}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")


@dataclass(kw_only=True)
class Paths:
    """Folders: run records and tables, local data, caches, logs of sweeps and of W&B."""

    results: str = "results"
    data: str = "data"
    cache: str = "cache"
    logs: str = "outputs"


@dataclass(kw_only=True)
class LauncherSettings:
    """How a sweep's jobs run, each in its own process.

    name: local (this machine), slurm or ray. devices: jobs at a time on this machine, None for one a GPU, or one
    without GPUs. processes: of one job; several are started by `accelerate launch`, with the file that
    accelerate_config names (None: configs/accelerate/ddp.yaml). The rest is what a job on a cluster asks for; hours
    also limits a local job. warning_seconds: how long before its time limit a Slurm job is told to save and is put
    back into the queue.
    """

    name: str = "local"
    devices: int | None = None
    processes: int = 1
    accelerate_config: str | None = None
    hours: float = 72.0
    warning_seconds: int = 120
    partition: str | None = None
    gpus: int = 1
    cpus: int = 8
    memory_gb: int = 64

    def __post_init__(self) -> None:
        if self.name not in LAUNCHERS:
            raise InputError(f"unknown launcher.name '{self.name}'{nearest(self.name, LAUNCHERS)}")
        for name in ("devices", "processes", "cpus", "memory_gb", "warning_seconds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"launcher.{name} is at least 1, not {value}")
        if self.gpus < 0 or self.hours <= 0:
            raise InputError("launcher.gpus is not negative, and launcher.hours is above 0")


@dataclass(kw_only=True)
class Config:
    """A run, fully described.

    `method` is a `neat_bench.methods.base.Method`; budget: the trainable parameters (0.3M, 0.1%) that its size is
    solved for, None for the size it has. start_from: the folder of a saved adapter of the same method, ours or peft's,
    whose values training starts from (its head too, where it has the same outputs). resume: auto goes on from the
    newest whole checkpoint of the run, never starts anew. on_oom: what a lack of memory in a training step does: fail,
    or halve the micro-batch, double the accumulation and repeat the step. debug: show tracebacks.
    """

    model: Pretrained
    dataset: DatasetSpec
    method: Any
    optimizer: Optimizer
    scheduler: Schedule
    trainer: TrainerSettings
    protocol: Protocol
    logger: Logger
    launcher: LauncherSettings = field(default_factory=LauncherSettings)
    paths: Paths = field(default_factory=Paths)
    seed: int = 0
    seeds: Seeds = field(default_factory=Seeds)
    budget: str | None = None
    start_from: str | None = None
    rerun: bool = False
    resume: str = "auto"
    on_oom: str = "fail"
    debug: bool = False
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)


# keys that do not change what is measured: they are in neither the record's config nor its hash
OUTSIDE_THE_RESULT = ("paths", "launcher", "logger", "rerun", "resume", "on_oom", "debug", "seed", "checkpoint")
# keys of the trainer that change no number either: in the record, not in the hash
NOT_HASHED = ("log_every", "workers")

# what a node with a _target_ must be, and what a node without one is
_TARGETS: dict[str, type] = {
    "model": Pretrained,
    "dataset": DatasetSpec,
    "optimizer": Optimizer,
    "logger": Logger,
}
_PLAIN: dict[str, type] = {
    "scheduler": Schedule,
    "trainer": TrainerSettings,
    "protocol": Protocol,
    "launcher": LauncherSettings,
    "checkpoint": CheckpointSettings,
    "paths": Paths,
    "seeds": Seeds,
}


def _expected_class(name: str) -> type:
    if name == "method":
        from neat_bench.methods.base import Method  # imports torch, so late

        return Method
    return _TARGETS[name]


def resolve_target(target: Any, key: str) -> type:
    """Return the dataclass that a `_target_` names; only this package's own are allowed."""
    module_name, _, class_name = str(target).rpartition(".")
    if not module_name.startswith("neat_bench."):
        raise InputError(f"{key}._target_: '{target}' is not a class of neat_bench")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError):
        raise InputError(f"{key}._target_: there is no '{target}'") from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise InputError(f"{key}._target_: '{target}' is not a configurable class")
    return found


def build_dataclass(cls: type, node: Mapping[str, Any], key: str) -> Any:
    """Return an instance of a dataclass from a config node; `key` is the node's name for messages.

    Raises InputError naming the key and the nearest valid one for an unknown, missing or ill-typed value.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    for name in node:
        if name not in names:
            raise InputError(f"unknown key '{key}.{name}'{nearest(name, names)}")
    schema = OmegaConf.structured(cls)
    try:
        merged = OmegaConf.merge(schema, OmegaConf.create(dict(node)))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise InputError(f"{key}.{missing[0]} is not set")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        where = f"{key}.{error.full_key}" if error.full_key else key
        problem = (error.msg or str(error)).splitlines()[0]
        if "not in" in problem and error.full_key:
            inner = error.full_key.rpartition(".")[2]
            parent = getattr(error.object_type, "__dataclass_fields__", {})
            raise InputError(f"unknown key '{where}'{nearest(inner, parent)}") from None
        raise InputError(f"{where}: {problem}") from None


def names_in(group: str) -> list[str]:
    """Return the names of the files in configs/<group>, sorted."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def load_named(cls: type, group: str, name: str) -> Any:
    """Return configs/<group>/<name>.yaml as a dataclass; raises InputError for a name or content that is none."""
    if name not in (names := names_in(group)):
        raise InputError(f"unknown {group} '{name}'{nearest(name, names)}")
    values: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))
    return build_dataclass(cls, values, f"{group} {name}")


def build(composed: DictConfig) -> Config:
    """Check a composed config and turn it into objects, before anything is loaded.

    Raises InputError for the first key that is unknown, missing, ill-typed or out of range.
    """
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(f"config key {error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(values, dict)
    names = [f.name for f in dataclasses.fields(Config)]
    for name in map(str, values):
        if name not in names:
            raise InputError(f"unknown key '{name}'{nearest(name, names)}")
    parts: dict[str, Any] = {}
    for name in ("model", "dataset", "method", "optimizer", "logger"):
        node = values.get(name)
        if not isinstance(node, dict) or "_target_" not in node:
            raise InputError(f"config group '{name}' is not chosen: give {name}=...")
        cls = resolve_target(node.pop("_target_"), name)
        expected = _expected_class(name)
        if not issubclass(cls, expected):
            raise InputError(f"{name}._target_: {cls.__name__} is not a {expected.__name__}")
        parts[name] = build_dataclass(cls, node, name)
    for name, cls in _PLAIN.items():
        node = values.get(name, {})
        if not isinstance(node, dict):
            raise InputError(f"'{name}' is a group of keys, not {node!r}")
        parts[name] = build_dataclass(cls, node, name)
    for name, kind in (("seed", int), ("rerun", bool), ("debug", bool), ("resume", str), ("on_oom", str)):
        value = values.get(name, Config.__dataclass_fields__[name].default)
        if type(value) is not kind:
            raise InputError(f"{name}: {value!r} is not of type {kind.__name__}")
        parts[name] = value
    for name in ("budget", "start_from"):
        parts[name] = None if values.get(name) is None else str(values[name])
    for name in ("model", "method"):
        _check_name(f"{name}.name", parts[name].name)
    for part in parts["dataset"].name.split("/"):
        _check_name("dataset.name", part)
    if parts["seed"] < 0:
        raise InputError(f"seed is not negative; got {parts['seed']}")
    for name, choices in CHOICES.items():
        if parts[name] not in choices:
            raise InputError(f"unknown {name} '{parts[name]}'{nearest(parts[name], choices)}")
    return Config(**parts)


def _check_name(key: str, name: str) -> None:
    """Raise InputError for a name that is no plain folder's: it becomes part of the record's path."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{key}: '{name}' is not a plain name (letters, digits, _ . + -, not first a sign)")


def plain(config: Config) -> dict[str, Any]:
    """Return everything that decides the result as plain data, for the record and the hash."""
    values = {}
    for f in dataclasses.fields(config):
        if f.name not in OUTSIDE_THE_RESULT:
            part = getattr(config, f.name)
            plain_part = not dataclasses.is_dataclass(part)
            values[f.name] = part if plain_part else {"class": type(part).__name__} | dataclasses.asdict(part)
    return values


def identity(config: Config) -> dict[str, Any]:
    """Return what tells a run from others: the plain data without the fields that have their class's default.

    So a field that a later version adds gives no finished run a new address; a class's default never changes.
    """
    values: dict[str, Any] = {}
    for name, value in plain(config).items():
        part = getattr(config, name)
        if not dataclasses.is_dataclass(part):
            if value is not None:
                values[name] = value
            continue
        left_out = {key for key, default in _defaults(part).items() if getattr(part, key) == default}
        left_out |= set(NOT_HASHED) if name == "trainer" else set()
        values[name] = {key: each for key, each in value.items() if key not in left_out}
    return values


def _defaults(part: Any) -> dict[str, Any]:
    """Return the default of each field that has one."""
    found = {}
    for f in dataclasses.fields(part):
        if f.default is not dataclasses.MISSING:
            found[f.name] = f.default
        elif f.default_factory is not dataclasses.MISSING:
            found[f.name] = f.default_factory()
    return found


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> DictConfig:
    """Compose the config outside Hydra's command line; config_dirs are searched beside configs/."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    extra = [f"hydra.searchpath=[{','.join(config_dirs)}]"] if config_dirs else []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose("config", [*overrides, *extra])
