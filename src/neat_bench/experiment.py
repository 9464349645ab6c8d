"""One run, from a checked config to its record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neat_bench.config import Config, plain
from neat_bench.files import check_writable, sha256_of_text
from neat_bench.results import record as records
from neat_bench.results.store import record_path, stored, write_record
from neat_bench.tasks.sequence_classification import SequenceClassification


def path_of(config: Config) -> Path:
    """Return where the run's record belongs; the same for the same config and seed."""
    names = config.dataset.suite, config.dataset.task, config.model.name, config.method.name
    return record_path(Path(config.paths.results), *names, records.config_hash(plain(config)), config.seed)


def run(config: Config, overrides: list[str]) -> dict[str, Any]:
    """Train, evaluate and record one run; return the record (the stored one if it exists already).

    `overrides` is what the user gave on the command line; tables label variants by it.
    Raises InputError for whatever the user can mend.
    """
    path = path_of(config)
    record = None if config.rerun else stored(path)
    if record is not None:
        print(f"already recorded: {path} (rerun=true repeats it)")
        return record
    check_writable(path.parent)
    data = config.dataset.load(Path(config.paths.data), config.trainer.limit_train, config.trainer.limit_evaluation)
    task = SequenceClassification(data, config.dataset.max_length)

    import datasets  # the heavy imports come after what is cheap to check
    import torch

    from neat_bench.evaluation.evaluator import Evaluator
    from neat_bench.evaluation.protocols import split_evaluation
    from neat_bench.methods.base import attach
    from neat_bench.methods.state import save_state, trained_state
    from neat_bench.models.roles import head_names
    from neat_bench.training.flops import training_flops
    from neat_bench.training.trainer import Trainer, make_accelerator

    datasets.disable_progress_bars()
    started = time.perf_counter()
    seeds = config.seeds.filled(config.seed)
    accelerator = make_accelerator(config.trainer)
    torch.manual_seed(seeds["init"])
    model, tokenizer, model_origin = config.model.load(task)
    attach(config.method, model)
    head = head_names(model)

    cache = Path(config.paths.cache) / "tokens"
    train_rows = task.encode(data.train, tokenizer, cache)
    evaluation_rows = task.encode(data.evaluation, tokenizer, cache)
    collate = task.collator(tokenizer)
    selects = split_evaluation(len(evaluation_rows), config.dataset.selection_items, config.seed)
    evaluator = Evaluator(
        task,
        evaluation_rows,
        collate,
        [config.dataset.metric, *config.dataset.extra_metrics],
        selects,
        config.protocol.name,
        config.trainer.evaluation_batch_size,
        accelerator,
        config.trainer.save_adapter,
    )

    run_name = f"{config.method.name}-{config.dataset.task}-seed{config.seed}"
    tags = [config.method.name, config.dataset.suite, config.dataset.task, config.model.name]
    config.logger.start(run_name, config.dataset.name, tags, plain(config), config.paths.logs)
    trainer = Trainer(config.trainer, config.optimizer, config.scheduler, accelerator, config.logger.log)
    torch.manual_seed(seeds["dropout"])
    trainer.fit(model, task, head, train_rows, collate, seeds["order"], evaluator)

    memory = records.peak_memory(accelerator.device.type)
    state = trained_state(model)
    batch = collate([train_rows[row] for row in range(min(8, len(train_rows)))])
    batch = {name: value.to(accelerator.device) for name, value in batch.items()}
    flops_per_token = training_flops(model, task.loss, batch) / batch["input_ids"].numel()

    index, reported = evaluator.chosen()
    predictions = evaluator.predictions[index][0]
    counted = ~selects if config.protocol.name == "split_validation" else np.ones_like(selects)
    record = {
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
        "overrides": sorted(overrides),
        "seed": config.seed,
        "seeds": seeds,
        "hashes": {
            "config": records.config_hash(plain(config)),
            "code": records.code_hash(),
            "data": sha256_of_text("".join(origin.sha256 for origin in data.provenance))[:12],
        },
        "data": [origin.as_dict() for origin in data.provenance],
        "model": model_origin,
        "environment": records.environment(accelerator.device.type, accelerator.num_processes),
        "parameters": {
            "trainable": sum(value.numel() for value in state.values()),
            "head": sum(value.numel() for name, value in state.items() if name in head),
            "total": sum(parameter.numel() for parameter in model.parameters()),
            "adapter_bytes": sum(value.numel() * value.element_size() for value in state.values()),
        },
        "metric": config.dataset.metric,
        "protocol": {
            "reported": config.protocol.name,
            "selection_items": int(selects.sum()),
            "report_items": int((~selects).sum()),
        },
        "results": evaluator.results(),
        "history": [vars(scores) for scores in evaluator.history],
        "cost": {
            **trainer.timing.as_dict(),
            **memory,
            "evaluation_seconds": evaluator.seconds,
            "total_seconds": time.perf_counter() - started,
            "training_flops_estimate": flops_per_token * trainer.timing.tokens,
        },
        "flags": records.flags(predictions[counted], evaluator.labels[counted], data.classes is not None),
    }
    if accelerator.is_main_process:
        if config.trainer.save_adapter:
            save_state(path.with_suffix(".adapter"), evaluator.best_state, plain(config))
        write_record(path, record, _items(evaluator, selects))
        shown = "  ".join(f"{name} {value:.4f}" for name, value in reported.items())
        print(f"{config.protocol.name}, epoch {evaluator.history[index].epoch + 1}: {shown}")
        print(f"recorded: {path}")
    config.logger.finish(record)
    return record


def _items(evaluator: Any, selects: np.ndarray) -> pd.DataFrame:
    """Return one row for each test item and each evaluation that some protocol chose.

    Columns: step (of the evaluation), id, part ("selection" or "report"), label, prediction, score
    (probability of the prediction; for regression its value), correct.
    """
    tables = []
    for index, (predictions, scores) in sorted(evaluator.predictions.items()):
        tables.append(
            pd.DataFrame(
                {
                    "step": evaluator.history[index].step,
                    "id": np.arange(len(predictions)),
                    "part": np.where(selects, "selection", "report"),
                    "label": evaluator.labels,
                    "prediction": predictions,
                    "score": scores,
                    "correct": predictions == evaluator.labels,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
