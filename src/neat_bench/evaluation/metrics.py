"""Metrics through `evaluate`, from the metric script in this package: nothing is downloaded."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = Path(__file__).parent / "metric_scripts" / "classification_scores.py"
CORRELATIONS = ("pearson", "spearman", "matthews_correlation")


@lru_cache
def _load(name: str) -> Any:
    import evaluate

    return evaluate.load(str(SCRIPT), config_name=name, keep_in_memory=True)


def metric(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the function (predictions, labels) -> score of a metric in `data.text.METRICS`.

    A correlation of constant predictions, which has no value, counts as 0.
    """

    def score(predictions: np.ndarray, labels: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant input: handled below
            value = _load(name).compute(predictions=predictions, references=labels)[name]
        return 0.0 if name in CORRELATIONS and math.isnan(value) else value

    return score
