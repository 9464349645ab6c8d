"""The training loop that drives every method."""

from __future__ import annotations

import math
import os
import signal
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
from accelerate.utils import DataLoaderConfiguration, gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from neat_bench.errors import InputError, StoppedBySignal
from neat_bench.methods.adapted import AdaptedMap, adapted_maps
from neat_bench.methods.base import Method, set_training
from neat_bench.methods.state import put_state, trained_tensors
from neat_bench.training.batches import LengthBucketedBatches, SeededRows
from neat_bench.training.checkpoint import (
    Checkpoints,
    Snapshot,
    optimizer_state,
    random_state,
    set_optimizer_state,
    set_random_state,
)
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


# (model, epoch, optimizer step, training loss so far) -> metrics to show, and the score that early stopping watches;
# where there are checkpoints it also has `snapshot` and `restore`, as Evaluator does
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
class _Run:
    """Where the loop stands, beside its counts in Timing."""

    loss_sum: Tensor  # of the present epoch
    loss_steps: int = 0
    best: float = -math.inf
    waited: int = 0


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
    checkpoints: Checkpoints | None = None
    timing: Timing = field(default_factory=Timing)
    resumed_at: list[int] = field(default_factory=list)

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

        A model without trainable parameters is only evaluated. With checkpoints, it goes on from the newest one.
        Raises InputError when the loss is not finite, StoppedBySignal after the checkpoint that a signal asks for.
        """
        settings, accelerator = self.settings, self.accelerator
        if not any(parameter.requires_grad for parameter in model.parameters()):
            metrics, _ = evaluate(accelerator.unwrap_model(accelerator.prepare(model)), -1, 0, None)
            self.log({f"eval/{name}": value for name, value in metrics.items()}, 0)
            return
        sampler = LengthBucketedBatches(rows["length"], settings.batch_size, settings.accumulation, order_seed)
        seeded = SeededRows(rows.with_format(None), order_seed)
        loader = DataLoader(seeded, batch_sampler=sampler, collate_fn=collate, **self._workers())
        snapshot = None if self.checkpoints is None else self.checkpoints.newest()
        if snapshot is None:
            self._prepare(model, task, loader)
        else:
            put_state(snapshot.under("model"), self.method, model, "the checkpoint")
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
        run = _Run(torch.zeros((), device=accelerator.device))
        if snapshot is not None:
            self._restore(snapshot, run, optimizer, schedule, evaluate)
        first_epoch, skipped = divmod(self.timing.steps, sampler.steps)
        progress.update(self.timing.steps)
        self.timing.start()
        with nullcontext() if self.checkpoints is None else self.checkpoints.heeding_signals():
            for epoch in range(first_epoch, epochs):
                sampler.start_epoch(epoch, skipped)
                seeded.epoch = epoch
                self._set_training(model)
                if not skipped:
                    run.loss_sum, run.loss_steps = torch.zeros_like(run.loss_sum), 0
                for micro_batches in self._optimizer_steps(loader, sampler, snapshot):
                    loss, norm = self._step(model, task, optimizer, micro_batches, total)
                    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
                    schedule.step()
                    run.loss_sum, run.loss_steps = run.loss_sum + loss, run.loss_steps + 1
                    step = self.timing.steps
                    progress.update()
                    if step % settings.log_every == 0 or step == total:
                        self._report(run.loss_sum / run.loss_steps, norm, rates, progress)
                    at_end = step == total
                    if at_end or (settings.evaluate_every is not None and step % settings.evaluate_every == 0) or (
                        settings.evaluate_every is None and step % sampler.steps == 0
                    ):  # fmt: skip
                        train_loss = self._finite(run.loss_sum / run.loss_steps)
                        self.timing.lap()
                        metrics, score = evaluate(accelerator.unwrap_model(model), epoch, step, train_loss)
                        self._set_training(model)
                        self.timing.start()
                        self.log({f"eval/{name}": value for name, value in metrics.items()}, step)
                        self._say(progress, epoch, epochs, train_loss, metrics)
                        run.waited = 0 if score > run.best else run.waited + 1
                        run.best = max(run.best, score)
                        if at_end or (settings.patience is not None and run.waited >= settings.patience):
                            progress.close()
                            return
                    self._checkpoint(model, run, optimizer, schedule, evaluate)
                skipped, snapshot = 0, None

    def _checkpoint(self, model: nn.Module, run: _Run, optimizer: Any, schedule: Any, evaluate: Any) -> None:
        """Save a checkpoint where one is due; raise StoppedBySignal where a signal asked for it."""
        checkpoints, step = self.checkpoints, self.timing.steps
        if checkpoints is None:
            return
        stopped_by = checkpoints.stopped_by
        if self.accelerator.num_processes > 1:  # all stop at the same step
            told = torch.tensor(stopped_by is not None, dtype=torch.int, device=self.accelerator.device)
            anyone = int(self.accelerator.reduce(told, "sum"))
            if anyone and stopped_by is None:
                stopped_by = checkpoints.stopped_by = signal.SIGTERM
        if not checkpoints.due(step):
            return
        self.timing.lap()
        random = dict(enumerate(gather_object([random_state()])))
        if self.accelerator.is_main_process:
            by_optimizer, optimizer_facts = optimizer_state(optimizer)
            by_evaluation, evaluation_facts = evaluate.snapshot()
            tensors = {
                **{
                    f"model/{name}": value
                    for name, value in trained_tensors(self.accelerator.unwrap_model(model)).items()
                },
                **{f"optimizer/{name}": value for name, value in by_optimizer.items()},
                **{f"evaluation/{name}": value for name, value in by_evaluation.items()},
                **{f"random{rank}/{name}": state for rank, states in random.items() for name, state in states.items()},
                "run/loss_sum": run.loss_sum,
            }
            scaler = self.accelerator.scaler
            facts = {
                "optimizer": optimizer_facts,
                "evaluation": evaluation_facts,
                "schedule": {name: value for name, value in schedule.state_dict().items() if name != "lr_lambdas"},
                "scaler": None if scaler is None else scaler.state_dict(),
                "run": {"loss_steps": run.loss_steps, "best": run.best, "waited": run.waited},
                "timing": {name: getattr(self.timing, name) for name in ("seconds", "steps", "items", "tokens")},
                "resumed_at": self.resumed_at,
            }
            checkpoints.save(Snapshot(step, tensors, facts))
        self.accelerator.wait_for_everyone()
        if stopped_by is not None:
            raise StoppedBySignal(stopped_by, step)
        self.timing.start()

    def _restore(self, snapshot: Snapshot, run: _Run, optimizer: Any, schedule: Any, evaluate: Any) -> None:
        """Put everything but the model and the random states back to what a checkpoint holds."""
        facts = snapshot.facts
        set_optimizer_state(optimizer, snapshot.under("optimizer"), facts["optimizer"])
        schedule.load_state_dict(facts["schedule"] | {"lr_lambdas": [None] * len(facts["schedule"]["base_lrs"])})
        if self.accelerator.scaler is not None and facts["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        evaluate.restore(snapshot.under("evaluation"), facts["evaluation"])
        run.loss_sum = snapshot.tensors["run/loss_sum"].to(run.loss_sum.device)
        run.loss_steps, run.best, run.waited = (facts["run"][name] for name in ("loss_steps", "best", "waited"))
        for name, value in facts["timing"].items():
            setattr(self.timing, name, value)
        self.resumed_at = [*facts["resumed_at"], snapshot.step]

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

    def _optimizer_steps(
        self, loader: DataLoader, sampler: LengthBucketedBatches, snapshot: Snapshot | None
    ) -> Iterator[list[dict[str, Tensor]]]:
        """Yield the micro-batches of an epoch's optimizer steps, from a checkpoint's random state if one is given."""
        random = {} if snapshot is None else snapshot.under(f"random{self.accelerator.process_index}")
        # a loader draws a number when it starts: in the run that was interrupted before this, or after
        if random and not sampler.skipped:
            set_random_state(random)
        batches = iter(loader)
        for index, rows in enumerate(sampler.step_batches()):
            micro_batches = list(islice(batches, math.ceil(len(rows) / sampler.batch_size)))
            if random and sampler.skipped and index == 0:
                set_random_state(random)
            yield micro_batches

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
        for adapted in maps:  # what was kept for the step is of no use after it
            adapted.begin(0, 1)
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
