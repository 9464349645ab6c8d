"""What classification and regression share, whatever the inputs: head size, loss and decision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from neat_bench.data.spec import Data
from neat_bench.tasks.predictions import Predictions

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


@dataclass(frozen=True)
class ClassificationTask:
    """Cross-entropy over classes or, without classes, mean squared error of one output."""

    data: Data
    tokenizer: Any = None

    predicts_in_one_pass = True  # of the rows as they are

    def with_tokenizer(self, tokenizer: Any) -> Self:
        """Return the task with the model's tokenizer (None for images)."""
        return replace(self, tokenizer=tokenizer)

    @property
    def outputs(self) -> int:
        """Number of outputs of the head."""
        return 1 if self.data.classes is None else len(self.data.classes)

    def logits(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the outputs of the head, batch x `outputs`."""
        raise NotImplementedError

    def weight(self, batch: dict[str, torch.Tensor]) -> int:
        """Return what the batch's mean loss is a mean over: its items."""
        return len(batch["labels"])

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss over the batch."""
        return self.loss_of(self.logits(model, batch), batch)

    def loss_of(self, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of logits, batch x `outputs`."""
        import torch.nn.functional as F

        logits = logits.float()
        if self.data.classes is None:
            return F.mse_loss(logits.squeeze(-1), batch["labels"].float())
        return F.cross_entropy(logits, batch["labels"])

    def predict(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits, batch x `outputs`."""
        return self.logits(model, batch).float()

    def decide(self, outputs: list[np.ndarray], rows: Dataset) -> Predictions:
        """Return the predictions from every encoded row's logits: the likeliest class, or the value."""
        logits, labels = np.stack(outputs), np.asarray(rows["labels"])
        if self.data.classes is None:
            values = logits[:, 0]
            return Predictions(values, labels, values, values == labels)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        predicted = logits.argmax(axis=1)
        options = np.full(len(labels), self.outputs)
        return Predictions(predicted, labels, probabilities.max(axis=1), predicted == labels, options)
