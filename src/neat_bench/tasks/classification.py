"""What classification and regression share, whatever the inputs: head size, loss and decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neat_bench.data.spec import Data

if TYPE_CHECKING:
    import torch


class ClassificationTask:
    """Cross-entropy over classes or, without classes, mean squared error of one output."""

    data: Data

    @property
    def outputs(self) -> int:
        """Number of outputs of the head."""
        return 1 if self.data.classes is None else len(self.data.classes)

    def logits(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the outputs of the head, batch x `outputs`."""
        raise NotImplementedError

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss over the batch."""
        import torch.nn.functional as F

        logits = self.logits(model, batch).float()
        if self.data.classes is None:
            return F.mse_loss(logits.squeeze(-1), batch["labels"].float())
        return F.cross_entropy(logits, batch["labels"])

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each item's prediction (class index, or value) and its score.

        The score is the probability of the predicted class; for regression it is the value itself.
        """
        if self.data.classes is None:
            return logits[:, 0], logits[:, 0]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        return logits.argmax(axis=1), probabilities.max(axis=1)
