"""Evaluates a model on merged weights and keeps what every protocol may ask for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from neat_bench.evaluation.metrics import metric as load_metric
from neat_bench.evaluation.protocols import Scores, apply_protocols
from neat_bench.methods.base import merge, unmerge
from neat_bench.methods.state import trained_state


class Predicts(Protocol):
    """The part of a task that evaluation needs."""

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor: ...  # noqa: D102
    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...  # noqa: D102


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
        protocol: str,
        batch_size: int,
        accelerator: Accelerator,
        keep_state: bool,
    ) -> None:
        """Prepare to evaluate `rows`; `metrics[0]` selects.

        Masks over the items: `selects` those that select under split_validation (the others report), `counts`
        those that best_dev and last report on.
        """
        self.task, self.metrics, self.protocol = task, metrics, protocol
        self.selects, self.counts = selects, counts
        self.accelerator, self.keep_state = accelerator, keep_state
        self.functions = {name: load_metric(name) for name in metrics}
        self.labels = np.asarray(rows["labels"])
        # longest first: no batch mixes lengths, and a lack of memory shows at once
        order = np.argsort(-np.asarray(rows["length"]), kind="stable")
        loader = DataLoader(rows.select(order), batch_size=batch_size, collate_fn=collate)
        self.loader = accelerator.prepare_data_loader(loader)
        self.history: list[Scores] = []
        self.predictions: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.best_state: dict[str, Tensor] = {}
        self.seconds = 0.0

    @torch.no_grad()
    def predict(self, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """Return prediction and score of every item, in the order of the rows, from merged weights."""
        logits, ids = [], []
        model.eval()
        merge(model)
        try:
            for batch in self.loader:
                outputs = self.task.logits(model, batch).float()
                gathered, where = self.accelerator.gather_for_metrics((outputs, batch["id"]))
                logits.append(gathered)
                ids.append(where)
        finally:
            unmerge(model)
        order = torch.cat(ids).argsort()
        return self.task.decide(torch.cat(logits)[order].cpu().numpy())

    def _score(self, predictions: np.ndarray, items: np.ndarray) -> dict[str, float]:
        return {name: score(predictions[items], self.labels[items]) for name, score in self.functions.items()}

    def __call__(self, model: nn.Module, epoch: int, step: int, train_loss: float) -> tuple[dict[str, float], float]:
        """Evaluate; return the metrics that best_dev and last report and the score that early stopping watches.

        Under split_validation that score is the selecting part's, so the reporting part stays unseen.
        """
        started = time.perf_counter()
        predictions, scores = self.predict(model)
        parts = (self.counts, self.selects, ~self.selects)
        whole, selection, report = (self._score(predictions, items) for items in parts)
        self.history.append(Scores(step, epoch, train_loss, whole, selection, report))
        self.predictions[len(self.history) - 1] = (predictions, scores)
        chosen = {index for index, _ in apply_protocols(self.history, self.metrics[0]).values()}
        self.predictions = {index: kept for index, kept in self.predictions.items() if index in chosen}
        if self.keep_state and self.chosen()[0] == len(self.history) - 1:
            self.best_state = trained_state(model)
        self.seconds += time.perf_counter() - started
        watched = selection if self.protocol == "split_validation" else whole
        return whole, watched[self.metrics[0]]

    def chosen(self) -> tuple[int, dict[str, float]]:
        """Return the evaluation that the reported protocol chooses, and its metrics."""
        return apply_protocols(self.history, self.metrics[0])[self.protocol]

    def reported_items(self) -> np.ndarray:
        """Return the mask of the items that the reported protocol counts."""
        return ~self.selects if self.protocol == "split_validation" else self.counts

    def items(self) -> pd.DataFrame:
        """Return one row for each item and each evaluation that some protocol chose.

        Columns: step (of the evaluation), id, part ("selection" or "report"), label, prediction, score
        (probability of the prediction; for regression its value), correct.
        """
        tables = []
        for index, (predictions, scores) in sorted(self.predictions.items()):
            columns = {
                "step": self.history[index].step,
                "id": np.arange(len(predictions)),
                "part": np.where(self.selects, "selection", "report"),
                "label": self.labels,
                "prediction": predictions,
                "score": scores,
                "correct": predictions == self.labels,
            }
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def results(self) -> dict[str, dict[str, float]]:
        """Return for each protocol the epoch and step it chooses and the metrics it reports."""
        return {
            name: {"epoch": self.history[index].epoch + 1, "step": self.history[index].step, **metrics}
            for name, (index, metrics) in apply_protocols(self.history, self.metrics[0]).items()
        }
