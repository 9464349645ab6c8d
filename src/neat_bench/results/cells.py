"""A cell of a table: one method's reported runs on one task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import compute
from pyarrow.parquet import ParquetFile

from neat_bench.files import sha256_of_text
from neat_bench.results.selection import Selection
from neat_bench.results.significance import interval


def spread(scores: Iterable[float]) -> float | None:
    """Return the sample standard deviation of scores, None for a single one."""
    values = list(scores)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Cell:
    """What a table shows of a method on a task: a score and a cost a seed, and how its setting was found."""

    selection: Selection
    metric: str
    scores: dict[int, float]  # by seed
    parameters: int  # trainable, without the task head
    seconds: float  # mean training time
    memory: int  # largest peak, bytes
    devices: frozenset[str]
    flags: dict[int, list[str]]  # by seed, of collapsed runs
    conditions: frozenset[str]  # what else moves a number, for the footer

    @property
    def trains(self) -> bool:
        """Whether anything trained, head included."""
        return self.selection.runs[0]["parameters"]["trainable"] > 0

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.scores.values())))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds, None for a single one."""
        return spread(self.scores.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% confidence interval of the mean over seeds, None for a single one."""
        return interval(list(self.scores.values()))


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


def make_cell(selection: Selection) -> Cell:
    """Return the cell of a method's selected setting on one task."""
    runs, protocol = selection.runs, selection.chosen.protocol
    metric = runs[0]["metric"]
    return Cell(
        selection,
        metric,
        {run["seed"]: run["results"][protocol][metric] for run in runs},
        runs[0]["parameters"]["trainable"] - runs[0]["parameters"]["head"],
        float(np.mean([run["cost"]["train_seconds"] for run in runs])),
        max(run["cost"]["peak_memory_bytes"] for run in runs),
        frozenset(run["environment"]["device"] for run in runs),
        {run["seed"]: run["flags"] for run in runs if run["flags"]},
        frozenset(f"{name} {value}" for run in runs for name, value in conditions(run).items()),
    )


@dataclass(frozen=True)
class Items:
    """The reported items of a run, one value an item in each array, by rising id."""

    id: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    correct: np.ndarray

    def shared(self, other: Items) -> tuple[Items, Items]:
        """Return the items that both have, in one order."""
        if np.array_equal(self.id, other.id):
            return self, other
        _, ours, theirs = np.intersect1d(self.id, other.id, assume_unique=True, return_indices=True)
        return self.at(ours), other.at(theirs)

    def at(self, which: np.ndarray) -> Items:
        """Return some of the items, by position or mask."""
        return Items(*(values[which] for values in vars(self).values()))


def items_of(record: dict[str, Any], protocol: str) -> Items | None:
    """Return the reported items of a run as its parquet file has them; None where there is no file.

    Of a run with several test sets, those of the set that the record's view names.
    """
    path = Path(record["path"]).with_suffix(".items.parquet")
    tested_apart = protocol == "split_validation" or bool(record["config"]["dataset"].get("test_split"))
    test_set = record["names"]["task"] if record.get("results_by_set") else None
    return _read_items(path, record["results"][protocol]["step"], tested_apart, test_set)


@lru_cache(maxsize=256)  # a baseline's are read once for all that is compared with it
def _read_items(path: Path, step: int, reporting_part: bool, test_set: str | None) -> Items | None:
    if not path.is_file():
        return None
    columns = ["step", "part", "id", "label", "prediction", "correct", *(["set"] if test_set else [])]
    with ParquetFile(path) as file:
        table = file.read(columns, use_threads=False)
    kept = compute.equal(table["step"], step)
    if reporting_part:
        kept = compute.and_(kept, compute.equal(table["part"], "report"))
    if test_set:
        kept = compute.and_(kept, compute.equal(table["set"], test_set))
    table = table.filter(kept)
    found = Items(*(table[name].to_numpy() for name in ("id", "label", "prediction", "correct")))
    return found.at(np.argsort(found.id, kind="stable"))
