"""Evaluates a model on merged weights and keeps what every protocol may ask for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from neat_bench.evaluation.metrics import metric as load_metric
from neat_bench.evaluation.protocols import Scores, apply_protocols
from neat_bench.methods.adapted import merge, unmerge
from neat_bench.methods.state import is_sharded, trained_state
from neat_bench.tasks.predictions import Predictions
from neat_bench.training.prefix import PrefixCache


class Predicts(Protocol):
    """The part of a task that evaluation needs."""

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor: ...  # noqa: D102
    def decide(self, outputs: list[np.ndarray], rows: Any) -> Predictions: ...  # noqa: D102


class Evaluator:
    """Called by the trainer at each evaluation; see `history`, `predictions` and `best_state` afterwards.

    Predictions of every evaluation that some protocol may still choose are kept, the others dropped.
    """

    def __init__(
        self,
        task: Predicts,
        rows: Any,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        metrics: list[str],
        selects: np.ndarray,
        counts: np.ndarray,
        sets: np.ndarray | None,
        protocol: str,
        batch_size: int,
        accelerator: Accelerator,
        keep_state: bool,
        prefix: PrefixCache | None = None,
    ) -> None:
        """Prepare to evaluate `rows`; `metrics[0]` selects.

        Masks over the items: `selects` those that select under split_validation (the others report), `counts`
        those that best_dev and last report on. sets: the test set of each item, whose scores are averaged.
        """
        self.task, self.rows, self.metrics, self.protocol = task, rows, metrics, protocol
        self.selects, self.counts, self.sets = selects, counts, sets
        self.accelerator, self.keep_state, self.prefix = accelerator, keep_state, prefix
        self.functions = {name: load_metric(name) for name in metrics}
        # longest first: no batch mixes lengths, and a lack of memory shows at once
        order = np.argsort(-np.asarray(rows["length"]), kind="stable").tolist()
        batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        # every process takes equally many, some batches twice if need be: they may have to meet in each
        turns = range(accelerator.process_index, len(batches) + accelerator.process_index, accelerator.num_processes)
        share = [batches[turn % len(batches)] for turn in turns]
        self.loader = DataLoader(rows, batch_sampler=share, collate_fn=collate)
        self.history: list[Scores] = []
        self.predictions: dict[int, Predictions] = {}
        self.best_state: dict[str, Tensor] = {}
        self.seconds = 0.0

    @torch.no_grad()
    def predict(self, model: nn.Module) -> Predictions:
        """Return the predictions for every item, in the order of the rows, from merged weights.

        A sharded model's weights are nowhere whole; it predicts with its adapters beside them.
        """
        found: list[tuple[int, np.ndarray]] = []
        model.eval()
        merged = not is_sharded(model)
        if merged:
            merge(model)
        visible = sys.stderr.isatty() and self.accelerator.is_main_process
        try:
            for rows in tqdm(self.loader, desc="evaluating", leave=False, disable=not visible):
                batch = send_to_device(rows, self.accelerator.device)
                with nullcontext() if self.prefix is None else self.prefix.reusing(batch):
                    outputs_of_batch = self.task.predict(model, batch)
                found += zip(rows["id"].tolist(), outputs_of_batch.cpu().numpy(), strict=True)
        finally:
            if merged:
                unmerge(model)
        gathered = dict(gather_object(found))
        outputs = [gathered[item] for item in range(len(self.rows))]
        return self.task.decide(outputs, self.rows)

    def _by_set(self, items: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each test set among the items with its mask; "" where there is one set."""
        if self.sets is None:
            yield "", items
            return
        for name in dict.fromkeys(self.sets[items].tolist()):
            yield name, items & (self.sets == name)

    def _score(self, predictions: Predictions, items: np.ndarray) -> dict[str, float]:
        """Return the metrics over the items, averaged over their test sets."""
        found, right = predictions.compared
        masks = [mask for _, mask in self._by_set(items)]
        return {
            name: float(np.mean([function(found[mask], right[mask]) for mask in masks]))
            for name, function in self.functions.items()
        }

    def __call__(
        self, model: nn.Module, epoch: int, step: int, train_loss: float | None
    ) -> tuple[dict[str, float], float]:
        """Evaluate; return the metrics that best_dev and last report and the score that early stopping watches.

        Under split_validation that score is the selecting part's, so the reporting part stays unseen.
        """
        started = time.perf_counter()
        predictions = self.predict(model)
        parts = (self.counts, self.selects, ~self.selects)
        whole, selection, report = (self._score(predictions, items) for items in parts)
        self.history.append(Scores(step, epoch, train_loss, whole, selection, report))
        self.predictions[len(self.history) - 1] = predictions
        chosen = {index for index, _ in apply_protocols(self.history, self.metrics[0]).values()}
        self.predictions = {index: kept for index, kept in self.predictions.items() if index in chosen}
        if self.keep_state and self.chosen()[0] == len(self.history) - 1:
            self.best_state = trained_state(model)
        self.seconds += time.perf_counter() - started
        watched = selection if self.protocol == "split_validation" else whole
        return whole, watched[self.metrics[0]]

    def measure(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return the metrics of the selecting and of the reporting part for the model as it is now; keep nothing."""
        predictions = self.predict(model)
        return {
            "selection": self._score(predictions, self.selects),
            "report": self._score(predictions, ~self.selects),
        }

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint keeps of the evaluations so far: numbers as tensors, the rest as plain data."""
        tensors = {f"best/{name}": value for name, value in self.best_state.items()}
        texts: dict[str, list[str]] = {}
        for index, predictions in self.predictions.items():
            for name, values in vars(predictions).items():
                if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
                    tensors[f"predictions/{index}/{name}"] = torch.from_numpy(values)
                elif values is not None:
                    texts[f"{index}/{name}"] = [str(value) for value in values]
        return tensors, {"history": [vars(scores) for scores in self.history], "texts": texts, "seconds": self.seconds}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put the evaluations back to what `snapshot` returned."""
        self.history = [Scores(**scores) for scores in facts["history"]]
        self.seconds = facts["seconds"]
        self.best_state = {n.removeprefix("best/"): value for n, value in tensors.items() if n.startswith("best/")}
        kept: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("predictions/"):
                _, index, column = name.split("/")
                kept.setdefault(int(index), {})[column] = value.numpy()
        for name, texts in facts["texts"].items():
            index, column = name.split("/")
            kept.setdefault(int(index), {})[column] = texts if column == "text" else np.array(texts, dtype=object)
        self.predictions = {index: Predictions(**columns) for index, columns in sorted(kept.items())}

    def chosen(self) -> tuple[int, dict[str, float]]:
        """Return the evaluation that the reported protocol chooses, and its metrics."""
        return apply_protocols(self.history, self.metrics[0])[self.protocol]

    def reported_items(self) -> np.ndarray:
        """Return the mask of the items that the reported protocol counts."""
        return ~self.selects if self.protocol == "split_validation" else self.counts

    def reported(self) -> Iterator[tuple[str, Predictions]]:
        """Yield for each test set its name ("" if there is one) and the reported predictions."""
        predictions = self.predictions[self.chosen()[0]]
        for name, mask in self._by_set(self.reported_items()):
            yield name, predictions.part(mask)

    def items(self) -> pd.DataFrame:
        """Return one row for each item and each evaluation that some protocol chose.

        Columns: step (of the evaluation), id, part ("selection" or "report"), set (where there are several),
        label, prediction, score (probability of the prediction; for regression its value; by likelihood the
        option's mean log-likelihood), correct, and text where it was generated.
        """
        tables = []
        for index, predictions in sorted(self.predictions.items()):
            columns: dict[str, Any] = {
                "step": self.history[index].step,
                "id": np.arange(len(predictions.prediction)),
                "part": np.where(self.selects, "selection", "report"),
            }
            if self.sets is not None:
                columns["set"] = self.sets
            for name in ("label", "prediction", "score", "correct", "text"):
                if (values := getattr(predictions, name)) is not None:
                    columns[name] = values
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def results(self) -> dict[str, dict[str, float]]:
        """Return for each protocol the epoch and step it chooses and the metrics it reports."""
        return {
            name: {"epoch": self.history[index].epoch + 1, "step": self.history[index].step, **metrics}
            for name, (index, metrics) in apply_protocols(self.history, self.metrics[0]).items()
        }

    def results_by_set(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the same for each test set by itself; empty where there is one."""
        if self.sets is None:
            return {}
        found: dict[str, dict[str, dict[str, float]]] = {}
        for protocol, (index, _) in apply_protocols(self.history, self.metrics[0]).items():
            items = ~self.selects if protocol == "split_validation" else self.counts
            place = {"epoch": self.history[index].epoch + 1, "step": self.history[index].step}
            for name, mask in self._by_set(items):
                found.setdefault(name, {})[protocol] = place | self._score(self.predictions[index], mask)
        return found
