"""Rows against a baseline: paired tests over the same items, seeds and tasks, corrected for their number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neat_bench.results.cells import Cell, items_of
from neat_bench.results.significance import (
    BOOTSTRAPPED,
    LEVEL,
    detectable,
    holm,
    mcnemar,
    over_seeds,
    paired_bootstrap,
    paired_t,
    wilcoxon,
)

# scores by seed, the cell of a task (None for a mean over tasks), the means of the tasks (empty for a task)
Side = tuple[dict[int, float], Cell | None, list[float]]


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline in one column. p values are two-sided; `corrected` ones are Holm's over the column.

    items: over the same test items (McNemar's exact test for accuracy, the paired bootstrap for correlations and F1).
    seeds: a paired t test over shared seeds. tasks: Wilcoxon's test over tasks, for a mean. detectable: the smallest
    difference that these seeds could have shown at 80% power.
    """

    difference: float
    items: float | None
    seeds: float | None
    tasks: float | None
    detectable: float | None
    corrected_items: float | None = None
    corrected_seeds: float | None = None

    @property
    def decisive(self) -> float | None:
        """The corrected p value that the verdict rests on: over seeds, or over items where there is one seed."""
        return self.corrected_items if self.corrected_seeds is None else self.corrected_seeds

    @property
    def verdict(self) -> str:
        """What the test says: better, worse, same (not told apart), or untested."""
        if self.decisive is None:
            return "untested"
        if self.decisive >= LEVEL:
            return "same"
        return "better" if self.difference > 0 else "worse"


def over_items(ours: Cell, theirs: Cell, protocol: str) -> float | None:
    """Return the p value over the items of shared seeds; None where items are missing or the metric has no test."""
    others = {run["seed"]: run for run in theirs.selection.runs}
    found = []
    for run in ours.selection.runs:
        if run["seed"] not in others:
            continue
        mine, yours = items_of(run, protocol), items_of(others[run["seed"]], protocol)
        if mine is None or yours is None:
            return None
        mine, yours = mine.shared(yours)
        if ours.metric == "accuracy":
            found.append(mcnemar(mine.correct.astype(bool), yours.correct.astype(bool)))
        elif ours.metric in BOOTSTRAPPED:
            found.append(paired_bootstrap(ours.metric, mine.prediction, yours.prediction, mine.label))
    return over_seeds(found) if found else None


def compare(base: Side, sides: dict[Any, Side], protocol: str) -> dict[Any, Comparison]:
    """Return each side's comparison with the baseline, Holm-corrected over the sides."""
    found = {}
    for key, (scores, cell, tasks) in sides.items():
        shared = sorted(scores.keys() & base[0].keys())
        differences = [scores[seed] - base[0][seed] for seed in shared]
        found[key] = Comparison(
            float(np.mean(list(scores.values())) - np.mean(list(base[0].values()))),
            None if cell is None or base[1] is None else over_items(cell, base[1], protocol),
            paired_t(scores, base[0]),
            wilcoxon(tasks, base[2]) if tasks and base[2] else None,
            detectable(differences),
        )
    items = holm([each.items for each in found.values()])
    seeds = holm([each.seeds for each in found.values()])
    return {
        key: replace(each, corrected_items=by_items, corrected_seeds=by_seeds)
        for (key, each), by_items, by_seeds in zip(found.items(), items, seeds, strict=True)
    }


def best_is_beyond_noise(ranked: list[dict[int, float]]) -> bool:
    """Say whether the first of some scores by seed differs from every other (paired t tests, Holm-corrected)."""
    tested = [paired_t(ranked[0], other) for other in ranked[1:]]
    corrected = [p for p in holm(tested) if p is not None]
    return len(corrected) == len(ranked) - 1 and max(corrected) < LEVEL
