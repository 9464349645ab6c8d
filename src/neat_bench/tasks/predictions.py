"""What evaluation gets from a task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """One value an item: what was predicted, what is right, and whether they agree.

    prediction, label: class indices, numbers or answer texts. score: the probability of the prediction, for
    regression its value, for loglikelihood scoring the mean log-likelihood a token, for generated texts not a
    number. options: among how many answers an item chooses, None where answers are open. text: the generated
    text, None where nothing was generated.
    """

    prediction: np.ndarray
    label: np.ndarray
    score: np.ndarray
    correct: np.ndarray
    options: np.ndarray | None = None
    text: list[str] | None = None

    @property
    def compared(self) -> tuple[np.ndarray, np.ndarray]:
        """What metrics compare: predictions and labels or, for answer texts, whether they agree and 1."""
        if self.label.dtype.kind in "iuf":
            return self.prediction, self.label
        return self.correct.astype(int), np.ones(len(self.correct), dtype=int)

    def part(self, mask: np.ndarray) -> Predictions:
        """Return the items of a mask."""
        text = None if self.text is None else [text for text, kept in zip(self.text, mask, strict=True) if kept]
        options = None if self.options is None else self.options[mask]
        return Predictions(self.prediction[mask], self.label[mask], self.score[mask], self.correct[mask], options, text)
