"""The training loop that drives every method."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object, send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from neat_bench.errors import InputError, StoppedBySignal
from neat_bench.methods.adapted import AdaptedMap, adapted_maps
from neat_bench.methods.base import Method, set_training
from neat_bench.methods.state import is_sharded, put_state, trained_tensors
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
from neat_bench.training.timing import Timing

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


def make_accelerator(settings: TrainerSettings) -> Accelerator:
    """Return accelerate's view of device, precision and processes.

    Raises InputError for a precision that the device does not have, and for what DeepSpeed cannot do.
    """
    if settings.precision == "fp16" and (settings.device == "cpu" or not torch.accelerator.is_available()):
        raise InputError("trainer.precision=fp16 needs a GPU: use bf16 or fp32 on a CPU")
    accelerator = Accelerator(
        mixed_precision=PRECISIONS[settings.precision],
        cpu=settings.device == "cpu",
        # a frozen or skipped part of a model has parameters without a gradient
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if settings.accumulation > 1:
            raise InputError("DeepSpeed takes a step each micro-batch: set trainer.accumulation=1")
        options = accelerator.state.deepspeed_plugin.deepspeed_config
        options["train_micro_batch_size_per_gpu"] = math.ceil(settings.batch_size / accelerator.num_processes)
        options["gradient_clipping"] = settings.clip_norm or 0.0
    return accelerator


def compile_model(model: nn.Module, **options: Any) -> None:
    """Let torch.compile take the model's forward and backward, for batches of any length."""
    # a method's scale is a constant; as a symbol it breaks the capture of DoRA's second use of it (torch 2.13)
    torch._dynamo.config.specialize_float = True
    model.compile(dynamic=True, **options)


@dataclass
class _Run:
    """What moves while a model trains, beside the counts in Timing."""

    model: nn.Module
    optimizer: Any
    schedule: Any
    sampler: LengthBucketedBatches
    evaluate: Any
    total: int  # optimizer steps in all
    maps: list[AdaptedMap]
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
    on_oom: str = "fail"
    timing: Timing = field(default_factory=Timing)
    resumed_at: list[int] = field(default_factory=list)
    halved_at: list[dict[str, int]] = field(default_factory=list)

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
        Raises InputError when the loss is not finite and when memory runs out, StoppedBySignal after the checkpoint
        that a signal asks for.
        """
        settings, accelerator = self.settings, self.accelerator
        if accelerator.num_processes > 1 and self.on_oom == "halve":
            raise InputError("on_oom=halve works in one process: with several, choose a smaller trainer.batch_size")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            metrics, _ = evaluate(accelerator.unwrap_model(accelerator.prepare(model)), -1, 0, None)
            self.log({f"eval/{name}": value for name, value in metrics.items()}, 0)
            return
        batches = rows["length"], settings.batch_size, settings.accumulation, order_seed
        sampler = LengthBucketedBatches(*batches, accelerator.process_index, accelerator.num_processes)
        seeded = SeededRows(rows.with_format(None), order_seed)
        snapshot = None if self.checkpoints is None else self.checkpoints.newest()
        if snapshot is None:
            # every process looks at the same whole batches
            self._prepare(model, task, DataLoader(seeded, batch_sampler=LengthBucketedBatches(*batches),
                                                  collate_fn=collate))  # fmt: skip
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
        model, optimizer = accelerator.prepare(model, optimizer)
        # the sampler has cut the batches into the processes' shares; accelerate only moves them
        loader = prepare_data_loader(
            DataLoader(seeded, batch_sampler=sampler, collate_fn=collate, **self._workers()),
            accelerator.device, num_processes=1, process_index=0, put_on_device=True,
        )  # fmt: skip
        sharded = is_sharded(model) or accelerator.distributed_type == DistributedType.DEEPSPEED
        if sharded and self.checkpoints is not None:
            if accelerator.is_main_process:
                print("warning: weights or optimizer states in parts: this run keeps no checkpoints", file=sys.stderr)
            self.checkpoints = None
        nothing = torch.zeros((), device=accelerator.device)
        maps = list(adapted_maps(model, AdaptedMap))
        run = _Run(model, optimizer, schedule, sampler, evaluate, total, maps, nothing)
        if snapshot is not None:
            self._restore(snapshot, run)
        with nullcontext() if self.checkpoints is None else self.checkpoints.heeding_signals():
            self._loop(run, task, loader, seeded, epochs, snapshot)
        for name in ("items", "tokens"):
            setattr(self.timing, name, sum(gather_object([getattr(self.timing, name)])))

    def _loop(
        self, run: _Run, task: Loss, loader: DataLoader, seeded: SeededRows, epochs: int, snapshot: Snapshot | None
    ) -> None:
        """Step, report, evaluate and save, from where the run stands to its end."""
        settings, sampler = self.settings, run.sampler
        first_epoch, skipped = divmod(self.timing.steps, sampler.steps)
        visible = sys.stderr.isatty() and self.accelerator.is_main_process
        progress = tqdm(total=run.total, initial=self.timing.steps, unit="step", disable=not visible,
                        dynamic_ncols=True)  # fmt: skip
        self.timing.start()
        for epoch in range(first_epoch, epochs):
            sampler.start_epoch(epoch, skipped)
            seeded.epoch = epoch
            self._set_training(run.model)
            if not skipped:
                run.loss_sum, run.loss_steps = torch.zeros_like(run.loss_sum), 0
            for micro_batches, counted in self._optimizer_steps(loader, sampler, snapshot):
                loss = self._gradients_or_halve(run, task, micro_batches, counted)
                if loss is None:
                    continue
                rates = {group["name"]: group["lr"] for group in run.optimizer.param_groups}
                norm = self._step(run)
                run.loss_sum, run.loss_steps = run.loss_sum + loss, run.loss_steps + 1
                step = self.timing.steps
                progress.update()
                if step % settings.log_every == 0 or step == run.total:
                    self._report(self._train_loss(run), norm, rates, progress)
                if step == run.total or step % (settings.evaluate_every or sampler.steps) == 0:
                    self._evaluate(run, epoch, epochs, progress)
                    if step == run.total or (settings.patience is not None and run.waited >= settings.patience):
                        progress.close()
                        return
                self._checkpoint(run)
            skipped, snapshot = 0, None

    def _evaluate(self, run: _Run, epoch: int, epochs: int, progress: tqdm) -> None:
        """Evaluate, and note whether the score that early stopping watches has risen."""
        step, train_loss = self.timing.steps, self._train_loss(run)
        self.timing.lap()
        metrics, score = run.evaluate(self.accelerator.unwrap_model(run.model), epoch, step, train_loss)
        self._set_training(run.model)
        self.timing.start()
        self.log({f"eval/{name}": value for name, value in metrics.items()}, step)
        if self.accelerator.is_main_process:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            progress.write(f"epoch {epoch + 1}/{epochs}  step {step}  loss {train_loss:.4f}  {shown}")
        run.waited = 0 if score > run.best else run.waited + 1
        run.best = max(run.best, score)

    def _checkpoint(self, run: _Run) -> None:
        """Save a checkpoint where one is due; raise StoppedBySignal where a signal asked for it."""
        checkpoints, step = self.checkpoints, self.timing.steps
        if checkpoints is None:
            return
        stopped_by = checkpoints.stopped_by
        if self.accelerator.num_processes > 1:  # all stop at the same step
            heard = torch.tensor(stopped_by or 0, device=self.accelerator.device)
            stopped_by = int(self.accelerator.gather(heard).max()) or None
            checkpoints.stopped_by = stopped_by
        if not checkpoints.due(step):
            return
        self.timing.lap()
        # what each process has of its own
        own = gather_object([{"random": random_state(), "timing": self.timing.counts()}])
        if self.accelerator.is_main_process:
            by_optimizer, optimizer_facts = optimizer_state(run.optimizer)
            by_evaluation, evaluation_facts = run.evaluate.snapshot()
            parts = {
                "model": trained_tensors(self.accelerator.unwrap_model(run.model)),
                "optimizer": by_optimizer,
                "evaluation": by_evaluation,
                "run": {"loss_sum": run.loss_sum},
                **{f"random{process}": each["random"] for process, each in enumerate(own)},
            }
            scaler = self.accelerator.scaler
            facts = {
                "optimizer": optimizer_facts,
                "evaluation": evaluation_facts,
                "schedule": {name: value for name, value in run.schedule.state_dict().items() if name != "lr_lambdas"},
                "scaler": None if scaler is None else scaler.state_dict(),
                "run": {"loss_steps": run.loss_steps, "best": run.best, "waited": run.waited},
                "timing": [each["timing"] for each in own],
                "batch_size": run.sampler.batch_size,
                "halved_at": self.halved_at,
                "resumed_at": self.resumed_at,
            }
            tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
            checkpoints.save(Snapshot(step, tensors, facts))
        self.accelerator.wait_for_everyone()
        if stopped_by is not None:
            raise StoppedBySignal(stopped_by, step)
        self.timing.start()

    def _restore(self, snapshot: Snapshot, run: _Run) -> None:
        """Put everything but the model and the random states back to what a checkpoint holds."""
        facts = snapshot.facts
        if len(facts["timing"]) != self.accelerator.num_processes:
            raise InputError(
                f"the checkpoint is of {len(facts['timing'])} processes, this run has "
                f"{self.accelerator.num_processes}: give it as many, or start anew with resume=never"
            )
        set_optimizer_state(run.optimizer, snapshot.under("optimizer"), facts["optimizer"])
        run.schedule.load_state_dict(facts["schedule"] | {"lr_lambdas": [None] * len(facts["schedule"]["base_lrs"])})
        if self.accelerator.scaler is not None and facts["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        run.evaluate.restore(snapshot.under("evaluation"), facts["evaluation"])
        run.loss_sum = snapshot.tensors["run/loss_sum"].to(run.loss_sum.device)
        run.loss_steps, run.best, run.waited = (facts["run"][name] for name in ("loss_steps", "best", "waited"))
        for name, value in facts["timing"][self.accelerator.process_index].items():
            setattr(self.timing, name, value)
        run.sampler.batch_size, self.halved_at = facts["batch_size"], facts["halved_at"]
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
    ) -> Iterator[tuple[list[dict[str, Tensor]], list[bool]]]:
        """Yield the micro-batches of an epoch's optimizer steps, and which of them count for this process.

        They start from a checkpoint's random state if one is given. A step whose consumer changed the sampler's batch
        size comes again, cut anew.
        """
        random = {} if snapshot is None else snapshot.under(f"random{self.accelerator.process_index}")
        # a loader draws a number when it starts: in the run that was interrupted before this, or after
        if random and not sampler.skipped:
            set_random_state(random)
            random = {}
        halved = True
        while halved:
            halved, size = False, sampler.batch_size
            batches = iter(loader)
            for index, rows in enumerate(sampler.step_batches()):
                counted = [counts for _, counts in sampler.micro_batches(rows)]
                micro_batches = list(islice(batches, len(counted)))
                if random:
                    set_random_state(random)
                    random = {}
                yield micro_batches, counted
                if halved := sampler.batch_size != size:
                    sampler.skipped += index
                    break

    def _gradients_or_halve(
        self, run: _Run, task: Loss, micro_batches: list[dict[str, Tensor]], counted: list[bool]
    ) -> Tensor | None:
        """Return the step's mean loss with its gradients in place; None where memory ran out and batches were halved.

        Raises InputError where memory ran out and on_oom or the batch's size allows no more.
        """
        sampler = run.sampler
        try:
            return self._gradients(run, task, micro_batches, counted)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                raise
        finally:  # what the maps keep for the step is of no use after it
            for adapted in run.maps:
                adapted.begin(0, 1)
        micro_batches.clear()
        run.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)
        if self.on_oom == "fail" or sampler.batch_size == 1:
            cure = "a smaller dataset.max_length or model" if sampler.batch_size == 1 else "on_oom=halve"
            raise InputError(
                f"out of memory at step {self.timing.steps + 1}, micro-batches of {sampler.batch_size}: set {cure}, "
                "or trainer.precision=bf16"
            )
        sampler.batch_size = math.ceil(sampler.batch_size / 2)
        self.halved_at.append({"step": self.timing.steps + 1, "batch_size": sampler.batch_size})
        print(f"out of memory at step {self.timing.steps + 1}: micro-batches of {sampler.batch_size} from here, the "
              "effective batch stays", file=sys.stderr)  # fmt: skip
        return None

    def _gradients(self, run: _Run, task: Loss, micro_batches: list[dict[str, Tensor]], counted: list[bool]) -> Tensor:
        """Add up the gradients of an optimizer step; return its mean loss, left on the device.

        A micro-batch counts by its items (or tokens), so neither accumulation nor processes change the gradient.
        """
        accelerator = self.accelerator
        weights = [task.weight(batch) * counts for batch, counts in zip(micro_batches, counted, strict=True)]
        whole: int | Tensor = sum(weights)
        if accelerator.num_processes > 1:  # the processes' gradients are averaged, not added
            whole = accelerator.reduce(torch.as_tensor(whole, device=accelerator.device), "sum")
            whole = whole / accelerator.num_processes
        total = torch.zeros((), device=accelerator.device)
        tokens = 0
        for index, batch in enumerate(micro_batches):
            for adapted in run.maps:
                adapted.begin(index, len(micro_batches))
            last = index == len(micro_batches) - 1
            reusing = nullcontext() if self.prefix is None else self.prefix.reusing(batch)
            with nullcontext() if last else accelerator.no_sync(run.model), reusing:
                loss = self.method.loss(task, run.model, batch) * (weights[index] / whole)
                penalty = self.method.penalty(accelerator.unwrap_model(run.model)) if last else None
                loss = loss if penalty is None else loss + penalty
                accelerator.backward(loss)
            total += loss.detach()
            tokens += batch["input_ids"].numel() * counted[index] if "input_ids" in batch else 0
        self.timing.tokens += tokens
        self.timing.items += sum(
            int(batch.get("items", len(batch["labels"]))) * counts
            for batch, counts in zip(micro_batches, counted, strict=True)
        )
        return total

    def _step(self, run: _Run) -> Tensor:
        """Take the optimizer step for which the gradients are there; return their norm, left on the device."""
        clip = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        trained = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
        norm = self.accelerator.clip_grad_norm_(trained, clip)
        run.optimizer.step()
        self.timing.steps += 1
        self.method.on_step(self.accelerator.unwrap_model(run.model), self.timing.steps, run.total)
        run.optimizer.zero_grad()
        run.schedule.step()
        return norm

    def _train_loss(self, run: _Run) -> float:
        """Return the present epoch's mean training loss over all processes; raises InputError if it is not finite."""
        value = self.accelerator.reduce(run.loss_sum / run.loss_steps, "mean").item()
        if not math.isfinite(value):
            raise InputError(
                f"the training loss is {value} at step {self.timing.steps}: lower optimizer.lr (and head_lr), "
                "or set trainer.clip_norm or trainer.precision=fp32"
            )
        return value

    def _report(self, value: float, norm: Tensor, rates: dict[str, float], progress: tqdm) -> None:
        """Log loss, gradient norm, learning rates and throughput, and show the loss."""
        self.timing.lap()
        timing = self.timing.as_dict()
        values = {"train/loss": value, "train/gradient_norm": norm.item()}
        values |= {f"train/lr_{name}": rate for name, rate in rates.items()}
        values |= {f"train/{name}": timing[name] for name in ("items_per_second", "tokens_per_second")}
        self.log(values, self.timing.steps)
        progress.set_postfix(loss=f"{value:.4f}")
