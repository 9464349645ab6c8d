"""One run, from a checked config to its record."""

from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neat_bench.config import Config, identity, plain
from neat_bench.data.spec import Data
from neat_bench.files import alone_at, check_writable, sha256_of_text
from neat_bench.results import record as records
from neat_bench.results.store import record_path, stored, write_record
from neat_bench.tasks import make_task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from neat_bench.evaluation.evaluator import Evaluator
    from neat_bench.tasks import Task
    from neat_bench.training.prefix import PrefixCache
    from neat_bench.training.trainer import Trainer


def path_of(config: Config) -> Path:
    """Return where the run's record belongs; the same for the same config and seed."""
    names = config.dataset.suite, config.dataset.task, config.model.name, config.method.name
    return record_path(Path(config.paths.results), *names, records.config_hash(identity(config)), config.seed)


def run(config: Config, overrides: list[str]) -> dict[str, Any]:
    """Train, evaluate and record one run; return the record (the stored one if it exists already).

    `overrides` is what the user gave on the command line; tables label variants by it.
    Raises InputError for whatever the user can mend.
    """
    path = path_of(config)
    record = _recorded(config, path)
    if record is not None:
        return record
    check_writable(path.parent)
    # of several processes of one run (accelerate launch) the first holds the claim for all
    with alone_at(path) if int(os.environ.get("RANK", 0)) == 0 else nullcontext():
        return _train(config, overrides, path)


def _recorded(config: Config, path: Path) -> dict[str, Any] | None:
    """Return the run's record if it is there and is not to be repeated."""
    record = None if config.rerun else stored(path)
    if record is not None:
        print(f"already recorded: {path} (rerun=true repeats it)")
    return record


def _train(config: Config, overrides: list[str], path: Path) -> dict[str, Any]:
    """Do what `run` promises, for a run that is not recorded yet."""
    import datasets

    datasets.disable_progress_bars()
    limits = config.trainer.limit_train, config.trainer.limit_evaluation
    data = config.dataset.load(Path(config.paths.data), *limits)
    task = make_task(config.dataset, data)

    import torch  # the heavy imports come after what is cheap to check
    from accelerate.utils import broadcast_object_list

    from neat_bench.evaluation.evaluator import Evaluator
    from neat_bench.methods.base import attach
    from neat_bench.methods.budget import solve
    from neat_bench.methods.state import save_state
    from neat_bench.models.roles import head_names
    from neat_bench.training.checkpoint import Checkpoints
    from neat_bench.training.trainer import Trainer, make_accelerator

    started = time.perf_counter()
    seeds = config.seeds.filled(config.seed)
    accelerator = make_accelerator(config.trainer)
    # it may have been recorded while this process waited; all processes of a run must agree on that
    [record] = broadcast_object_list([_recorded(config, path)])
    if record is not None:
        return record
    cache = Path(config.paths.cache)

    method, budget = config.method, None
    if config.budget is not None:
        method, budget = solve(method, config.budget, lambda: config.model.skeleton(task, cache))
    torch.manual_seed(seeds["init"])
    model, tokenizer, model_origin = config.model.load(task, cache)
    attach(method, model)
    if config.start_from is not None:
        from neat_bench.methods.peft_format import start_from

        model_origin["start_from"] = start_from(Path(config.start_from), method, model)

    task = task.with_tokenizer(tokenizer)
    with accelerator.main_process_first():  # the others find its encoded rows in the cache
        train_rows = task.encode(data.train, cache / "encoded", training=True)
        evaluation_rows = task.encode(data.evaluation, cache / "encoded", training=False)
    collate = task.collator(training=True)
    caches = _prefix_caches(config, model, task, train_rows, evaluation_rows)
    evaluator = Evaluator(
        task,
        evaluation_rows,
        task.collator(training=False),
        [config.dataset.metric, *config.dataset.extra_metrics],
        *_masks(config, data),
        data.sets,
        config.protocol.name,
        config.trainer.evaluation_batch_size,
        accelerator,
        config.trainer.save_adapter,
        caches["evaluation"],
    )
    if accelerator.is_main_process:
        _start_logging(config)
    checkpoints = Checkpoints(_checkpoint_folder(config, path), config.checkpoint, config.resume == "auto")
    trainer = Trainer(
        config.trainer,
        config.optimizer,
        config.scheduler,
        accelerator,
        config.logger.log,
        method,
        caches["training"],
        checkpoints,
        config.on_oom,
    )
    torch.manual_seed(seeds["dropout"] + accelerator.process_index)
    trainer.fit(model, task, head_names(model), train_rows, collate, seeds["order"], evaluator)

    record = _make_record(config, overrides, data, model, model_origin, trainer, evaluator)
    record["method"] = method.report(model, lambda: evaluator.measure(model))
    batch = collate([train_rows[row] for row in range(min(8, len(train_rows)))])
    record["cost"]["training_flops_estimate"] = trainer.estimate_flops(model, task, batch)
    met = record["parameters"]["trainable"] - record["parameters"]["head"]
    record["budget"] = None if budget is None else budget.as_dict() | {"met": met}
    record["cost"]["total_seconds"] = time.perf_counter() - started
    if accelerator.is_main_process:
        if config.trainer.save_adapter:
            save_state(path.with_suffix(".adapter"), evaluator.best_state, plain(config))
        write_record(path, record, evaluator.items())
        _say(config, evaluator, path)
        checkpoints.clear()
        config.logger.finish(record)
    accelerator.wait_for_everyone()
    return record


def _checkpoint_folder(config: Config, path: Path) -> Path:
    """Return where a run's checkpoints belong: under the logs, by the same names as its record."""
    inside = path.relative_to(Path(config.paths.results)).with_suffix("")
    return Path(config.paths.logs) / "checkpoints" / inside


def _masks(config: Config, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return which evaluation items select under split_validation, and which best_dev and last report on."""
    from neat_bench.evaluation.protocols import split_evaluation

    if data.selects is not None:
        return data.selects, ~data.selects
    selects = split_evaluation(len(data.evaluation), config.dataset.selection_items, config.seed)
    return selects, np.ones_like(selects)


def _prefix_caches(
    config: Config, model: nn.Module, task: Task, train_rows: Dataset, evaluation_rows: Dataset
) -> dict[str, PrefixCache | None]:
    """Return what keeps the frozen prefix's outputs in training and in evaluation, where asked for and possible."""
    from neat_bench.training.prefix import FrozenPrefix, PrefixCache

    caches: dict[str, PrefixCache | None] = {"training": None, "evaluation": None}
    if config.trainer.cache_frozen_prefix:
        prefix, folder = FrozenPrefix(model), Path(config.paths.cache)
        caches["training"] = PrefixCache(prefix, train_rows, folder, config.trainer.prefix_cache_gb)
        if task.predicts_in_one_pass:
            caches["evaluation"] = PrefixCache(prefix, evaluation_rows, folder, config.trainer.prefix_cache_gb)
    return caches


def _start_logging(config: Config) -> None:
    name = f"{config.method.name}-{config.dataset.task}-seed{config.seed}"
    tags = [config.method.name, config.dataset.suite, config.dataset.task, config.model.name]
    config.logger.start(name, config.dataset.name, tags, plain(config), config.paths.logs)


def _say(config: Config, evaluator: Evaluator, path: Path) -> None:
    index, reported = evaluator.chosen()
    shown = "  ".join(f"{name} {value:.4f}" for name, value in reported.items())
    print(f"{config.protocol.name}, epoch {evaluator.history[index].epoch + 1}: {shown}")
    for name, results in evaluator.results_by_set().items():
        if name in (each for each, *_ in evaluator.reported()):
            print(f"  {name}: {results[config.protocol.name][config.dataset.metric]:.4f}")
    print(f"recorded: {path}")


def _entries(parameter: Any) -> int:
    """Return the entries of a parameter, of a 4-bit one those that it packs."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)


def _make_record(
    config: Config,
    overrides: list[str],
    data: Data,
    model: nn.Module,
    model_origin: dict[str, Any],
    trainer: Trainer,
    evaluator: Evaluator,
) -> dict[str, Any]:
    """Return the record of a trained model; results/README.md describes the fields."""
    from neat_bench.models.roles import head_names

    head = head_names(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    device = trainer.accelerator.device.type
    return {
        "schema": records.SCHEMA,
        "source": "measured",
        "names": {
            "suite": config.dataset.suite,
            "task": config.dataset.task,
            "model": config.model.name,
            "model_label": config.model.label,
            "method": config.method.name,
            "method_label": config.method.label,
        },
        "config": plain(config),
        "overrides": [override for override in overrides if not override.startswith("paths.")],  # a machine's
        "seed": config.seed,
        "seeds": config.seeds.filled(config.seed),
        "hashes": {
            "config": records.config_hash(identity(config)),
            "code": records.code_hash(),
            "data": sha256_of_text("".join(origin.sha256 for origin in data.provenance))[:12],
        },
        "data": [origin.as_dict() for origin in data.provenance],
        "model": model_origin,
        "environment": records.environment(device, trainer.accelerator.num_processes),
        "parameters": {
            "trainable": sum(parameter.numel() for parameter in trained.values()),
            "head": sum(parameter.numel() for name, parameter in trained.items() if name in head),
            "total": sum(_entries(parameter) for parameter in model.parameters()),
            "adapter_bytes": sum(parameter.numel() * parameter.element_size() for parameter in trained.values()),
        },
        "metric": config.dataset.metric,
        "protocol": {
            "reported": config.protocol.name,
            "selection_items": int(evaluator.selects.sum()),
            "report_items": int((~evaluator.selects).sum()),
        },
        "results": evaluator.results(),
        "results_by_set": evaluator.results_by_set(),
        "contamination": data.contamination,
        "history": [vars(scores) for scores in evaluator.history],
        "cost": {
            **trainer.timing.as_dict(),
            **records.peak_memory(device),
            "evaluation_seconds": evaluator.seconds,
            "resumed_at": trainer.resumed_at,
            "halved_at": trainer.halved_at,
            "cached_blocks": 0 if trainer.prefix is None else len(trainer.prefix.prefix.blocks),
        },
        "flags": [
            f"{name}: {flag}" if name else flag
            for name, predictions in evaluator.reported()
            for flag in records.flags(
                predictions.prediction, predictions.label, predictions.options, evaluator.metrics[0]
            )
        ],
    }
