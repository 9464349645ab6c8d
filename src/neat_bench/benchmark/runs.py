"""A whole training run: ours against transformers' Trainer with peft, on the same model, rows and number of items.

One epoch over the same rows, evaluation apart. The contestants take turns, round by round, in one process; a
figure is the median over rounds of the ratio of times to transformers' Trainer with peft's LoRA and its own
default batches (random, padded to the longest).
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset

from neat_bench.config import Config, build, compose
from neat_bench.methods.base import attach
from neat_bench.models.roles import head_names
from neat_bench.tasks import make_task
from neat_bench.training.trainer import Trainer, make_accelerator

REFERENCE = "transformers Trainer + peft lora"
BATCH, RANK, ALPHA = 32, 8, 16
EQUAL_LENGTH = 16  # tokens

Contestant = Callable[[Dataset], float]


def _config(method: str, dataset: str, data: str, device: str, precision: str) -> Config:
    """Return a config of the embedded model, adapters on query and value, clipped, one epoch."""
    own = {"lora": [f"method.alpha={ALPHA}"], "neat": [], "dora": [f"method.alpha={ALPHA}"]}[method]
    return build(compose([
        "model=minilm_l6", f"dataset={dataset}", "model=minilm_l6", f"paths.data={data}", f"method={method}",
        f"method.rank={RANK}", *own, "method.targets=[query,value]", "optimizer.lr=1e-3", "trainer.epochs=1",
        f"trainer.batch_size={BATCH}", "trainer.log_every=1000", f"trainer.precision={precision}", "logger=none",
        f"trainer.device={'cpu' if device == 'cpu' else 'auto'}", "trainer.max_steps=null",
    ]))  # fmt: skip


def ours(config: Config, task: Any, cache: Path) -> Contestant:
    """Return (rows) -> seconds of one epoch in our loop."""

    def train(rows: Dataset) -> float:
        torch.manual_seed(0)
        model, tokenizer, _ = config.model.load(task, cache)
        attach(config.method, model)
        trainer = Trainer(
            config.trainer,
            config.optimizer,
            config.scheduler,
            make_accelerator(config.trainer),
            lambda *_: None,
            config.method,
        )
        readied = task.with_tokenizer(tokenizer)
        collate = readied.collator(training=True)
        trainer.fit(model, readied, head_names(model), rows, collate, 0, lambda *_: ({}, 0.0))
        return trainer.timing.seconds

    return train


def theirs(peft_config: Any, config: Config, task: Any, cache: Path, grouped: bool) -> Contestant:
    """Return (rows) -> seconds of one epoch in transformers' Trainer."""
    import peft
    import transformers

    class Clock(transformers.TrainerCallback):
        seconds = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                self.started = time.perf_counter()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.started

    class OurLoss(transformers.Trainer):
        """Only the loss is handed over, so that both sides compute the same one."""

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
            return task.loss(model, inputs)

    def train(rows: Dataset) -> float:
        torch.manual_seed(0)
        model, tokenizer, _ = config.model.load(task, cache)
        head = sorted({name.split(".")[0] for name in head_names(model)})
        adapted = peft.get_peft_model(model, replace(peft_config, modules_to_save=head))
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=1e-3,
                max_grad_norm=1.0, lr_scheduler_type="linear", report_to=[], save_strategy="no", logging_strategy="no",
                use_cpu=config.trainer.device == "cpu", bf16=config.trainer.precision == "bf16", disable_tqdm=True,
                remove_unused_columns=False, train_sampling_strategy="group_by_length" if grouped else "random",
            )  # fmt: skip
            clock = Clock()
            trainer = OurLoss(
                model=adapted,
                args=arguments,
                train_dataset=rows,
                data_collator=task.with_tokenizer(tokenizer).collator(training=True),
                callbacks=[clock],
            )
            trainer.train()
        return clock.seconds

    return train


def measure(dataset: str, data: str, device: str, items: int, rounds: int) -> dict[str, Any]:
    """Return the time of each contestant as a ratio to `REFERENCE`, on rows as they are and on rows of one length."""
    import peft
    import transformers

    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    cache = Path(tempfile.mkdtemp())
    config = _config("lora", dataset, data, device, "fp32")
    entrants = {name: _config(name, dataset, data, device, "fp32") for name in ("lora", "neat", "dora")}
    entrants["lora, bf16 autocast"] = _config("lora", dataset, data, device, "bf16")
    loaded = config.dataset.load(Path(data), None, None)
    task: Any = make_task(config.dataset, loaded)
    _, tokenizer, _ = config.model.load(task, cache)
    encoded = task.with_tokenizer(tokenizer).encode(loaded.train, cache, training=True)
    natural = encoded.shuffle(seed=0).select(range(min(items, len(encoded))))
    place: dict[str, Any] = {"target_modules": ["query", "value"], "r": RANK}
    lora, peanut = peft.LoraConfig(lora_alpha=ALPHA, **place), peft.PeanutConfig(**place)
    contestants: dict[str, Contestant] = {
        REFERENCE: theirs(lora, config, task, cache, grouped=False),
        "transformers Trainer + peft lora, grouped by length": theirs(lora, config, task, cache, grouped=True),
        "transformers Trainer + peft peanut, grouped by length": theirs(peanut, config, task, cache, grouped=True),
        **{f"ours, {name}": ours(entrant, task, cache) for name, entrant in entrants.items()},
    }
    results = {"rows as they are": natural, f"rows of {EQUAL_LENGTH} tokens": _of_one_length(natural)}
    return {
        "dataset": dataset,
        "model": config.model.label,
        "precision": "fp32 unless said otherwise",
        "rounds": rounds,
        "rows": {
            name: {"items": len(rows), "tokens": sum(rows["length"]), "ratios": _ratios(contestants, rows, rounds)}
            for name, rows in results.items()
        },
    }


def _of_one_length(rows: Dataset) -> Dataset:
    """Return the rows cut or repeated to one number of tokens."""
    columns = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in rows.column_names]

    def fitted(row: dict[str, Any]) -> dict[str, Any]:
        repeated = {name: (row[name] * EQUAL_LENGTH)[:EQUAL_LENGTH] for name in columns}
        return repeated | {"length": EQUAL_LENGTH}

    return rows.map(fitted, load_from_cache_file=False, keep_in_memory=True)


def _ratios(contestants: dict[str, Contestant], rows: Dataset, rounds: int) -> dict[str, dict[str, float]]:
    few = rows.select(range(2 * BATCH))
    for train in contestants.values():
        _quietly(train, few)  # warm-up
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, train in contestants.items():
            times[name].append(_quietly(train, rows))
    found = {}
    for name in contestants:
        ratios = [own / reference for own, reference in zip(times[name], times[REFERENCE], strict=True)]
        found[name] = {"time": statistics.median(ratios), "time_low": min(ratios), "time_high": max(ratios)}
    return found


def _quietly(train: Contestant, rows: Dataset) -> float:
    """Train in a fresh state of accelerate, which holds one precision a process, and without its lines."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with contextlib.redirect_stdout(io.StringIO()):
        return train(rows)
