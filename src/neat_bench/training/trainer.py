"""The training loop that drives every method."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, adapted_maps
from neat_bench.methods.base import Method, set_training
from neat_bench.training.batches import LengthBucketedBatches, SeededRows
from neat_bench.training.flops import training_flops
from neat_bench.training.optimizers import Optimizer
from neat_bench.training.prefix import PrefixCache
from neat_bench.training.schedules import Schedule
from neat_bench.training.settings import PRECISIONS, TrainerSettings

if TYPE_CHECKING:
    from datasets import Dataset

Log = Callable[[dict[str, float], int], None]


class Loss(Protocol):
    """The part of a task that the loop needs: a mean loss, and the weight of that mean (items, or tokens)."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor: ...  # noqa: D102
    def weight(self, batch: dict[str, Tensor]) -> int | Tensor: ...  # noqa: D102


# (model, epoch, optimizer step, training loss so far) -> metrics to show, and the score that early stopping watches
Evaluate = Callable[[nn.Module, int, int, float | None], tuple[dict[str, float], float]]


@dataclass
class Timing:
    """What training cost: seconds of training (data waiting in, evaluation out), steps, items and input tokens."""

    seconds: float = 0.0
    steps: int = 0
    items: int = 0
    tokens: int = 0
    _since: float = 0.0

    def start(self) -> None:
        """Start the clock; what passed since the last lap does not count."""
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Count the time since the last start or lap; the device's queue must be empty."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def as_dict(self) -> dict[str, float]:
        """Return the counts and the rates made of them."""
        seconds = max(self.seconds, 1e-9)
        return {
            "train_seconds": self.seconds,
            "steps": self.steps,
            "items": self.items,
            "tokens": self.tokens,
            "seconds_per_step": self.seconds / max(self.steps, 1),
            "items_per_second": self.items / seconds,
            "tokens_per_second": self.tokens / seconds,
        }


def make_accelerator(settings: TrainerSettings) -> Accelerator:
    """Return accelerate's view of device, precision and processes; batches are split over processes.

    Raises InputError for a precision that the device does not have.
    """
    if settings.precision == "fp16" and (settings.device == "cpu" or not torch.accelerator.is_available()):
        raise InputError("trainer.precision=fp16 needs a GPU: use bf16 or fp32 on a CPU")
    return Accelerator(
        mixed_precision=PRECISIONS[settings.precision],
        cpu=settings.device == "cpu",
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )


def compile_model(model: nn.Module, **options: Any) -> None:
    """Let torch.compile take the model's forward and backward, for batches of any length."""
    # a method's scale is a constant; as a symbol it breaks the capture of DoRA's second use of it (torch 2.13)
    torch._dynamo.config.specialize_float = True
    model.compile(dynamic=True, **options)


@dataclass
class Trainer:
    """Fits the trainable parameters of a model on encoded rows with a `length` column."""

    settings: TrainerSettings
    optimizer: Optimizer
    schedule: Schedule
    accelerator: Accelerator
    log: Log
    method: Method
    prefix: PrefixCache | None = None
    timing: Timing = field(default_factory=Timing)

    def fit(
        self,
        model: nn.Module,
        task: Loss,
        head: set[str],
        rows: Dataset,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        order_seed: int,
        evaluate: Evaluate,
    ) -> None:
        """Train; `head` names the parameters that take the head's learning rate.

        A model without trainable parameters is only evaluated. Raises InputError when the loss is not finite.
        """
        settings, accelerator = self.settings, self.accelerator
        if not any(parameter.requires_grad for parameter in model.parameters()):
            metrics, _ = evaluate(accelerator.unwrap_model(accelerator.prepare(model)), -1, 0, None)
            self.log({f"eval/{name}": value for name, value in metrics.items()}, 0)
            return
        sampler = LengthBucketedBatches(rows["length"], settings.batch_size, settings.accumulation, order_seed)
        seeded = SeededRows(rows.with_format(None), order_seed)
        loader = DataLoader(seeded, batch_sampler=sampler, collate_fn=collate, **self._workers())
        self._prepare(model, task, loader)
        if settings.compile:
            compile_model(model)
        optimizer = self.optimizer.build(self.optimizer.groups(model, head))
        epochs, total = settings.epochs, sampler.steps * settings.epochs
        if settings.max_steps is not None:
            total = min(total, settings.max_steps)
            epochs = math.ceil(total / sampler.steps)
        schedule = self.schedule.build(optimizer, total)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        progress = tqdm(total=total, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        best, waited = -math.inf, 0
        self.timing.start()
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            seeded.epoch = epoch
            self._set_training(model)
            loss_sum, loss_steps = torch.zeros((), device=accelerator.device), 0
            for micro_batches in self._optimizer_steps(loader, sampler):
                loss, norm = self._step(model, task, optimizer, micro_batches, total)
                rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
                schedule.step()
                loss_sum, loss_steps = loss_sum + loss, loss_steps + 1
                step = self.timing.steps
                progress.update()
                if step % settings.log_every == 0 or step == total:
                    self._report(loss_sum / loss_steps, norm, rates, progress)
                at_end = step == total
                if at_end or (settings.evaluate_every is not None and step % settings.evaluate_every == 0) or (
                    settings.evaluate_every is None and step % sampler.steps == 0
                ):  # fmt: skip
                    train_loss = self._finite(loss_sum / loss_steps)
                    self.timing.lap()
                    metrics, score = evaluate(accelerator.unwrap_model(model), epoch, step, train_loss)
                    self._set_training(model)
                    self.timing.start()
                    self.log({f"eval/{name}": value for name, value in metrics.items()}, step)
                    self._say(progress, epoch, epochs, train_loss, metrics)
                    waited = 0 if score > best else waited + 1
                    best = max(best, score)
                    if at_end or (settings.patience is not None and waited >= settings.patience):
                        progress.close()
                        return

    def _prepare(self, model: nn.Module, task: Loss, loader: DataLoader) -> None:
        """Let the method look at the first batches, if it asks for some."""
        if self.method.prepare_batches:
            model.to(self.accelerator.device)
            set_training(model)
            batches = [send_to_device(b, self.accelerator.device) for b in islice(loader, self.method.prepare_batches)]
            self.method.prepare(model, batches, lambda batch: self.method.loss(task, model, batch))

    def _set_training(self, model: nn.Module) -> None:
        set_training(model)
        if self.prefix is not None:
            self.prefix.prefix.set_inference()

    def estimate_flops(self, model: nn.Module, task: Loss, batch: dict[str, Any]) -> float:
        """Return the operations of the whole training (0 without any), from those of one batch by its size."""
        if not self.timing.steps:
            return 0.0
        batch = send_to_device(batch, self.accelerator.device)
        size = batch["input_ids"].numel() if "input_ids" in batch else len(batch["labels"])
        return (
            training_flops(model, partial(self.method.loss, task), batch)
            / size
            * (self.timing.tokens or self.timing.items)
        )

    def _workers(self) -> dict[str, Any]:
        """Return the loader's options: on a GPU, processes that decode while it computes, unless told otherwise."""
        workers = self.settings.workers
        if workers is None:
            workers = min(8, (os.cpu_count() or 1) - 1) if self.accelerator.device.type == "cuda" else 0
        # collators hold the tokenizer or transforms and are not pickled
        return {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}

    def _optimizer_steps(self, loader: DataLoader, sampler: LengthBucketedBatches) -> Iterator[list[dict[str, Tensor]]]:
        """Yield the micro-batches of each optimizer step of one epoch."""
        batches = iter(loader)
        for rows in sampler.step_batches():
            yield list(islice(batches, math.ceil(len(rows) / sampler.batch_size)))

    def _step(
        self,
        model: nn.Module,
        task: Loss,
        optimizer: torch.optim.Optimizer,
        micro_batches: list[dict[str, Tensor]],
        total_steps: int,
    ) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; return its mean loss and gradient norm, both left on the device.

        A micro-batch counts by its items (or tokens), so accumulation gives the gradient of one large batch.
        """
        weights = [task.weight(batch) for batch in micro_batches]
        whole = sum(weights)
        total = torch.zeros((), device=self.accelerator.device)
        maps = adapted_maps(model, AdaptedMap)
        for index, batch in enumerate(micro_batches):
            for adapted in maps:
                adapted.begin(index, len(micro_batches))
            last = index == len(micro_batches) - 1
            reusing = nullcontext() if self.prefix is None else self.prefix.reusing(batch)
            with nullcontext() if last else self.accelerator.no_sync(model), reusing:
                loss = self.method.loss(task, model, batch) * (weights[index] / whole)
                penalty = self.method.penalty(self.accelerator.unwrap_model(model)) if last else None
                loss = loss if penalty is None else loss + penalty
                self.accelerator.backward(loss)
            total += loss.detach()
            self.timing.tokens += batch["input_ids"].numel() if "input_ids" in batch else 0
        clip = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = self.accelerator.clip_grad_norm_(trained, clip)
        optimizer.step()
        self.timing.steps += 1
        self.method.on_step(self.accelerator.unwrap_model(model), self.timing.steps, total_steps)
        optimizer.zero_grad()
        self.timing.items += sum(int(batch.get("items", len(batch["labels"]))) for batch in micro_batches)
        return total, norm

    def _finite(self, loss: Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(
                f"the training loss is {value} at step {self.timing.steps}: lower optimizer.lr (and head_lr), "
                "or set trainer.clip_norm or trainer.precision=fp32"
            )
        return value

    def _report(self, loss: Tensor, norm: Tensor, rates: dict[str, float], progress: tqdm) -> None:
        """Log loss, gradient norm, learning rates and throughput, and show the loss."""
        value = self._finite(loss)
        self.timing.lap()
        timing = self.timing.as_dict()
        values = {"train/loss": value, "train/gradient_norm": norm.item()}
        values |= {f"train/lr_{name}": rate for name, rate in rates.items()}
        values |= {f"train/{name}": timing[name] for name in ("items_per_second", "tokens_per_second")}
        self.log(values, self.timing.steps)
        progress.set_postfix(loss=f"{value:.4f}")

    def _say(self, progress: tqdm, epoch: int, epochs: int, loss: float, metrics: dict[str, float]) -> None:
        """Print one line an evaluation, on the main process."""
        if self.accelerator.is_main_process:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            progress.write(f"epoch {epoch + 1}/{epochs}  step {self.timing.steps}  loss {loss:.4f}  {shown}")
