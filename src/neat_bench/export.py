"""What a run trained, written for use elsewhere: as a peft adapter, or merged into a plain checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neat_bench.config import Config, build, compose, identity
from neat_bench.errors import InputError
from neat_bench.files import write_folder_whole
from neat_bench.results.record import config_hash
from neat_bench.results.store import read_record

FORMATS = ("peft", "merged")


def config_of(path: Path, config_dirs: list[str]) -> tuple[Config, dict[str, Any]]:
    """Return the config and the record of a run; raises InputError where the configs no longer give that run."""
    try:
        record = read_record(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    config = build(compose(record["overrides"], config_dirs))
    if config_hash(identity(config)) != record["hashes"]["config"]:
        raise InputError(
            f"{path}: the configs have changed since that run ({' '.join(record['overrides'])}); check out commit "
            f"{record['environment']['code']['commit']}"
        )
    return config, record


def export(path: Path, to: str, out: Path, config_dirs: list[str] | None = None) -> None:
    """Write the adapter of the run whose record lies at `path` into a new folder.

    Raises InputError where the run saved no adapter, or where its method has no such form.
    """
    adapter = path.with_suffix(".adapter")
    if not adapter.is_dir():
        raise InputError(f"{adapter} is not there: repeat the run with trainer.save_adapter=true rerun=true")
    if out.exists():
        raise InputError(f"{out} exists already: choose another folder with --out")
    config, record = config_of(path, config_dirs or [])
    from neat_bench.data.spec import Data
    from neat_bench.methods.base import attach
    from neat_bench.methods.peft_format import start_of, to_peft
    from neat_bench.methods.state import load_state
    from neat_bench.models.roles import head_names
    from neat_bench.tasks import make_task

    task = make_task(config.dataset, Data([], [], config.dataset.class_names(), []))
    cache = Path(config.paths.cache)
    method = config.method
    if record["budget"] and record["budget"]["solved"]:
        (size,) = record["budget"]["solved"].values()
        method = method.sized(size)
    model: Any
    base: Any
    model, tokenizer, _ = config.model.load(task, cache)
    base, _, _ = config.model.load(task, cache)
    attach(method, model)
    # a sentence encoder leaves by itself: its classifier is a file of its own
    encoder, plain_encoder = (model.encoder, base.encoder) if _is_encoder(model) else (model, base)
    start = start_of(encoder) if to == "peft" else {}
    load_state(adapter, method, model)
    model.eval()
    if to == "peft":
        heads = [] if _is_encoder(model) else sorted({name.partition(".")[0] for name in head_names(model)})
        theirs = to_peft(method, encoder, start, plain_encoder, heads)
        write_folder_whole(out, lambda folder: _save_peft(theirs, model, folder))
    else:
        write_folder_whole(out, lambda folder: _save_merged(model, tokenizer, base, config, folder))


def _is_encoder(model: Any) -> bool:
    return not hasattr(model, "save_pretrained") and hasattr(model, "encoder")


def _save_classifier(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    if _is_encoder(model):
        save_file(dict(model.classifier.state_dict()), folder / "classifier.safetensors")


def _save_peft(theirs: Any, model: Any, folder: Path) -> None:
    theirs.save_pretrained(folder)
    _save_classifier(model, folder)


def _save_merged(model: Any, tokenizer: Any, base: Any, config: Config, folder: Path) -> None:
    """Write the model without adapters, as from_pretrained (or timm) reads it."""
    from safetensors.torch import save_file

    from neat_bench.methods.adapted import unwrap

    unwrap(model)
    if left := sorted(model.state_dict().keys() - base.state_dict().keys()):
        raise InputError(f"{config.method.name} cannot be merged here: {left[0]} is no part of the plain model")
    if hasattr(model, "save_pretrained") or _is_encoder(model):
        (model.encoder if _is_encoder(model) else model).save_pretrained(folder)
        _save_classifier(model, folder)
    else:
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
        )
        architecture = {"architecture": config.model.architecture, "num_classes": model.num_classes}  # type: ignore[attr-defined]
        (folder / "config.json").write_text(json.dumps(architecture) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
