"""Tests and intervals by scipy: what a difference between two methods is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8
RESAMPLES = 2_000


def interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% confidence interval of the mean (Student's t over seeds), None for fewer than two scores."""
    if len(scores) < 2:
        return None
    mean, error = float(np.mean(scores)), float(stats.sem(scores))
    if error == 0.0:
        return mean, mean
    low, high = stats.t.interval(1 - LEVEL, len(scores) - 1, mean, error)
    return float(low), float(high)


def paired_t(ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """Return the two-sided p value of a paired t test over shared seeds.

    None for fewer than two, and where all differ by the same amount: scores come in steps of an item, so without any
    spread (three seeds, each one item apart) the test would call a single item certain.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return None
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    if np.ptp(differences) < 1e-12:
        return 1.0 if abs(differences[0]) < 1e-12 else None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def wilcoxon(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the two-sided p value of Wilcoxon's signed-rank test over tasks, None for fewer than six.

    With five pairs no p value below 0.05 exists.
    """
    differences = np.asarray(ours) - np.asarray(theirs)
    if len(differences) < 6:
        return None
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the exact two-sided p value of McNemar's test: were the same items (bool arrays) answered better?"""
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    if only_ours + only_theirs == 0:
        return 1.0
    return float(stats.binomtest(only_ours, only_ours + only_theirs, 0.5).pvalue)


def _pearson(predictions: np.ndarray, labels: np.ndarray, axis: int) -> np.ndarray:
    x = predictions - predictions.mean(axis=axis, keepdims=True)
    y = labels - labels.mean(axis=axis, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (x * y).sum(axis=axis) / np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    return np.nan_to_num(found)  # a constant has no correlation: it counts as 0, as in the records


def _f1(predictions: np.ndarray, labels: np.ndarray, axis: int) -> np.ndarray:
    both = ((predictions == 1) & (labels == 1)).sum(axis=axis)
    either = (predictions == 1).sum(axis=axis) + (labels == 1).sum(axis=axis)
    return 2 * both / np.maximum(either, 1)


# of two classes, 0 and 1, Matthews' coefficient is Pearson's
BOOTSTRAPPED = {"pearson": _pearson, "matthews_correlation": _pearson, "f1": _f1}


def paired_bootstrap(metric: str, ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> float:
    """Return the two-sided p value of a difference in one of `BOOTSTRAPPED`, items resampled in pairs.

    Arrays of one value an item. Twice the smaller share of resamples on either side of zero, one more counted on
    each, so it is never 0.
    """
    function = BOOTSTRAPPED[metric]

    def difference(a: np.ndarray, b: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
        return function(a, right, axis) - function(b, right, axis)

    data = tuple(np.asarray(each, dtype=float) for each in (ours, theirs, labels))
    found = stats.bootstrap(
        data, difference, n_resamples=RESAMPLES, batch=200, paired=True, vectorized=True, method="percentile",
        rng=np.random.default_rng(0),
    ).bootstrap_distribution  # fmt: skip
    below, above = int((found <= 0).sum()), int((found >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(found)))


def over_seeds(p_values: Sequence[float]) -> float:
    """Return one p value from several seeds' tests on overlapping items: twice their median.

    Valid whatever their dependence (Rueger 1978); of a single seed it is the p value itself.
    """
    return float(p_values[0]) if len(p_values) == 1 else min(1.0, 2 * float(np.median(p_values)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down corrected p values in the same order; None stays out of the family."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[index] = largest
    return corrected


@lru_cache
def _detectable_effect(count: int) -> float:
    """Return the standardised effect that a two-sided paired t test on `count` pairs finds in 80% of cases."""
    critical = stats.t.ppf(1 - LEVEL / 2, count - 1)

    def missing(effect: float) -> float:
        shift = effect * math.sqrt(count)
        # the far tail underflows to NaN where it is nothing
        wrong_side = np.nan_to_num(stats.nct.cdf(-critical, count - 1, shift))
        return float(stats.nct.sf(critical, count - 1, shift) + wrong_side) - POWER

    return float(optimize.brentq(missing, 1e-3, 50.0))


def detectable(differences: Sequence[float]) -> float | None:
    """Return the smallest true difference that a paired t test on so many seeds finds in 80% of cases.

    differences: those observed seed by seed, whose spread stands for the true one. None for fewer than two.
    """
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return _detectable_effect(len(differences)) * spread if spread else None


def friedman(scores: np.ndarray) -> float | None:
    """Return the p value of Friedman's test on tasks x methods, None for fewer than three methods or two tasks."""
    tasks, methods = scores.shape
    if methods < 3 or tasks < 2 or not np.ptp(scores, axis=1).any():
        return None
    return float(stats.friedmanchisquare(*scores.T).pvalue)


def average_ranks(scores: np.ndarray) -> np.ndarray:
    """Return each method's mean rank over tasks (1 is best; ties share), from scores of tasks x methods."""
    return stats.rankdata(-scores, axis=1).mean(axis=0)


@lru_cache
def _nemenyi_quantile(methods: int) -> float:
    """Return the quantile of the studentised range for so many methods, over the square root of two."""
    return float(stats.studentized_range.ppf(1 - LEVEL, methods, 10_000)) / math.sqrt(2)


def critical_difference(tasks: int, methods: int) -> float:
    """Return how far two mean ranks must lie apart (Nemenyi at 0.05; Demsar 2006, JMLR 7)."""
    return _nemenyi_quantile(methods) * math.sqrt(methods * (methods + 1) / (6 * tasks))
