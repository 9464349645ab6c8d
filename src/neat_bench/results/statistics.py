"""From records to cells: grouping into variants, means over seeds, and whether a lead is more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from neat_bench.files import sha256_of_text

# command-line choices that make a cell's place in the table, or change nothing that is measured
_NOT_A_VARIANT = (
    "method",
    "dataset",
    "model",
    "seed",
    "logger",
    "launcher",
    "rerun",
    "paths",
    "experiment",
    "protocol",
)
SIGNIFICANCE = 0.05


def variant_of(record: dict[str, Any]) -> str:
    """Return what sets a run apart from its method's recipe: the remaining command-line overrides."""
    kept = []
    for override in record["overrides"]:
        key = override.lstrip("+~").split("=")[0]
        if key.split(".")[0].split("@")[0] not in _NOT_A_VARIANT or key.startswith(("method.", "dataset.", "model.")):
            kept.append(override)
    return " ".join(sorted(kept))


def spread(scores: dict[int, float]) -> float | None:
    """Return the sample standard deviation of scores by seed, None for a single one."""
    return float(np.std(list(scores.values()), ddof=1)) if len(scores) > 1 else None


@dataclass(frozen=True)
class Cell:
    """One method's runs on one task: a score and a cost a seed."""

    metric: str
    scores: dict[int, float]  # by seed
    parameters: int  # trainable, without the task head
    seconds: float  # mean training time
    memory: int  # largest peak, bytes
    devices: frozenset[str]
    flags: frozenset[str]
    conditions: frozenset[str]  # what else moves a number, for the footer

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.scores.values())))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds, None for a single one."""
        return spread(self.scores)


def conditions(record: dict[str, Any]) -> dict[str, Any]:
    """Return what moves a number by itself, so that runs which differ in it cannot share a column."""
    trainer, dataset = record["config"]["trainer"], record["config"]["dataset"]
    found = {
        "metric": record["metric"],
        "evaluation split": dataset.get("test_split") or dataset["evaluation_split"],
        "precision": trainer["precision"],
        "evaluation batch": trainer["evaluation_batch_size"],
        "image normalisation": dataset.get("normalization"),
        "loss on": dataset.get("loss_on"),
        "scoring": dataset.get("scoring"),
        "template": dataset.get("template"),
        "prompt": sha256_of_text(repr(dataset["templates"][dataset["template"]]))[:8]
        if "templates" in dataset
        else None,
        "longest input": dataset.get("max_length") if "templates" in dataset else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def make_cell(records: list[dict[str, Any]], protocol: str) -> Cell:
    """Return the cell of one variant's records on one task, which differ in the seed alone."""
    metric = records[0]["metric"]
    return Cell(
        metric,
        {record["seed"]: record["results"][protocol][metric] for record in records},
        records[0]["parameters"]["trainable"] - records[0]["parameters"]["head"],
        float(np.mean([record["cost"]["train_seconds"] for record in records])),
        max(record["cost"]["peak_memory_bytes"] for record in records),
        frozenset(record["environment"]["device"] for record in records),
        frozenset(flag for record in records for flag in record["flags"]),
        frozenset(f"{name} {value}" for record in records for name, value in conditions(record).items()),
    )


def leads(best: dict[int, float], second: dict[int, float]) -> bool:
    """Say whether `best` beats `second` beyond the noise of their shared seeds (paired t test, p < 0.05).

    With fewer than two shared seeds nothing can be said, so the answer is no.
    """
    seeds = sorted(best.keys() & second.keys())
    if len(seeds) < 2:
        return False
    differences = np.array([best[seed] - second[seed] for seed in seeds])
    if np.allclose(differences, differences[0]):
        return bool(differences[0] > 0)
    p = stats.ttest_1samp(differences, 0.0).pvalue
    return bool(not math.isnan(p) and p < SIGNIFICANCE and differences.mean() > 0)
