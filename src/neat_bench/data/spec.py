"""What every data set's description shares: names, splits, and where rows come from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neat_bench.data.sources import HubSource, Provenance, read_split
from neat_bench.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

METRICS = ("accuracy", "f1", "matthews_correlation", "pearson", "spearman")
HOLDOUT_SEED = SUBSET_SEED = 0


@dataclass(frozen=True)
class Data:
    """Checked rows: `id` (int) and the suite's columns.

    classes: names in label order; None for regression and for text answers. With splits that only report,
    `evaluation` holds the selecting rows and then theirs, and `selects` masks the former; without, `selects`
    is None and the protocol splits the rows. sets: the test set of each evaluation row, where there are
    several (scores are then macro averages); the selecting rows' is "validation". contamination: for each
    test set what of it the training rows hold.
    """

    train: Dataset
    evaluation: Dataset
    classes: list[str] | None
    provenance: list[Provenance]
    selects: np.ndarray | None = None
    sets: np.ndarray | None = None
    contamination: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """The checked rows of one split and where they came from."""

    name: str
    rows: Dataset
    origin: Provenance


@dataclass(kw_only=True)
class DatasetSpec:
    """A data set: one split trains, one selects, and one or more report.

    files: split name -> parquet, CSV or JSON file, for data of one's own. evaluation_split selects, or None
    where `holdout` takes the selecting rows out of the training split: a share below 1, or a number of rows
    (drawn with a fixed seed). test_split: a split that only reports; None where the selecting rows report too.
    selection_items: how many items of that one split select under split_validation (None: half).
    subset_of, subset_items: a named subset reads the files of the set `subset_of` and keeps so many rows of its
    training split, drawn with a fixed seed before any are held out; results stand under the subset's own name.
    """

    name: str
    label_name: str = ""
    metric: str = "accuracy"
    extra_metrics: list[str] = field(default_factory=list)
    train_split: str = "train"
    evaluation_split: str | None = "validation"
    holdout: float | None = None
    test_split: str | None = None
    selection_items: int | None = None
    files: dict[str, str] | None = None
    hub: HubSource | None = None
    subset_of: str | None = None
    subset_items: int | None = None

    def __post_init__(self) -> None:
        for metric in [self.metric, *self.extra_metrics]:
            if metric not in METRICS:
                raise InputError(f"unknown metric '{metric}' in dataset.metric{nearest(metric, METRICS)}")
        if self.name.count("/") != 1:
            raise InputError(f"dataset.name has the form suite/task, not '{self.name}'")
        if (self.evaluation_split is None) == (self.holdout is None):
            raise InputError("a data set has either dataset.evaluation_split or dataset.holdout; set the other to null")
        if (self.subset_of is None) != (self.subset_items is None) or self.subset_of == self.name:
            raise InputError(
                f"a subset of the training rows has a name of its own: set dataset.name (now {self.name}), "
                "dataset.subset_of and dataset.subset_items together"
            )
        if self.subset_items is not None and self.subset_items < 1:
            raise InputError(f"dataset.subset_items is at least 1, not {self.subset_items}")
        if self.holdout is not None and self.holdout <= 0:
            raise InputError(f"dataset.holdout is a share below 1 or a number of rows, not {self.holdout}")

    @property
    def suite(self) -> str:
        """The part of the name before the slash, such as glue."""
        return self.name.split("/")[0]

    @property
    def task(self) -> str:
        """The part of the name after the slash, such as sst2."""
        return self.name.split("/")[1]

    def read(self, split: str, data_root: Path) -> tuple[Dataset, Provenance]:
        """Return the raw rows of a split; packaged data sets override this."""
        return read_split(self.subset_of or self.name, split, data_root, self.files, self.hub)

    def checked(self, rows: Dataset, split: str) -> dict[str, list[Any]]:
        """Return the suite's columns from raw rows; raises InputError for what cannot be used."""
        raise NotImplementedError

    def class_names(self) -> list[str] | None:
        """Return the names of the classes in label order, None where there are none."""
        return None

    def reporting(self, data_root: Path) -> list[Split]:
        """Return the splits that only report."""
        return [] if self.test_split is None else [self.split(self.test_split, data_root)]

    def split(self, name: str, data_root: Path) -> Split:
        """Read and check one split; raises InputError for missing columns, no rows and unusable values."""
        rows, origin = self.read(name, data_root)
        return Split(name, self.as_checked(rows, name), origin)

    def as_checked(self, rows: Dataset, name: str) -> Dataset:
        """Return the checked columns with an `id`; raises InputError where there is no row."""
        from datasets import Dataset

        if len(rows) == 0:
            raise InputError(f"{self.name}, split {name}: no rows")
        return Dataset.from_dict({"id": list(range(len(rows))), **self.checked(rows, name)})

    def load(self, data_root: Path, limit_train: int | None, limit_evaluation: int | None) -> Data:
        """Read and check all splits; the limits keep the first rows of each only.

        Raises InputError for missing columns, empty splits, and values that cannot be used.
        """
        from datasets import concatenate_datasets

        train = self.split(self.train_split, data_root)
        provenance, train_rows = [train.origin], self._subset(train.rows)
        if self.evaluation_split is None:
            train_rows, selecting = self._hold_out(train_rows)
        else:
            selection = self.split(self.evaluation_split, data_root)
            provenance, selecting = [*provenance, selection.origin], selection.rows
        reporting = self.reporting(data_root)
        train_rows = first_rows(train_rows, limit_train)
        parts = [first_rows(rows, limit_evaluation) for rows in (selecting, *(split.rows for split in reporting))]
        if not reporting:
            return Data(train_rows, parts[0], self.class_names(), provenance)
        evaluation = concatenate_datasets(parts)
        evaluation = evaluation.remove_columns("id").add_column("id", list(range(len(evaluation))))
        return Data(
            train_rows,
            evaluation,
            self.class_names(),
            [*provenance, *(split.origin for split in reporting)],
            np.arange(len(evaluation)) < len(parts[0]),
            self._set_of_each_row(reporting, [len(part) for part in parts]),
            self.contamination(train_rows, dict(zip([split.name for split in reporting], parts[1:], strict=True))),
        )

    def contamination(self, train: Dataset, tests: dict[str, Dataset]) -> dict[str, dict[str, int]]:
        """Return for each reporting split how much of it the training rows hold; nothing by default."""
        return {}

    def _subset(self, rows: Dataset) -> Dataset:
        """Return the training rows of a named subset in the file's order, all rows of other sets."""
        if self.subset_items is None:
            return rows
        if self.subset_items > len(rows):
            raise InputError(f"dataset.subset_items={self.subset_items}, but {self.subset_of} has {len(rows)} rows")
        order = np.random.default_rng(SUBSET_SEED).permutation(len(rows))
        return rows.select(np.sort(order[: self.subset_items]))

    def _hold_out(self, rows: Dataset) -> tuple[Dataset, Dataset]:
        """Return the rows that train and those that select, both in the file's order."""
        assert self.holdout is not None
        count = math.ceil(self.holdout * len(rows)) if self.holdout < 1 else int(self.holdout)
        if count >= len(rows):
            raise InputError(f"dataset.holdout={self.holdout} leaves no training row of the {len(rows)} of {self.name}")
        order = np.random.default_rng(HOLDOUT_SEED).permutation(len(rows))
        return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))

    @staticmethod
    def _set_of_each_row(reporting: list[Split], sizes: list[int]) -> np.ndarray | None:
        if len(reporting) < 2:
            return None
        return np.repeat(["validation", *(split.name for split in reporting)], sizes)


def first_rows(rows: Dataset, limit: int | None) -> Dataset:
    """Return the first `limit` rows, all for None."""
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def require_columns(rows: Dataset, columns: list[str], where: str) -> None:
    """Raise InputError, naming those there are, for a column that is missing."""
    for column in columns:
        if column not in rows.column_names:
            raise InputError(f"{where}: no column '{column}'; it has {', '.join(rows.column_names)}")


@dataclass(kw_only=True)
class LabelledSpec(DatasetSpec):
    """A classification (or, without classes, regression) data set: inputs and a label in columns of a table.

    classes: the class names in label order; a label column may hold their indices or the names themselves.
    Labels become integers in [0, number of classes) or, for regression, floats.
    """

    label: str = "label"
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None and len(self.classes) < 2:
            raise InputError("dataset.classes names at least two classes (leave it out for regression)")

    def class_names(self) -> list[str] | None:
        """Return the configured names."""
        return self.classes

    def inputs(self, rows: Dataset, split: str) -> dict[str, list]:
        """Return the checked input columns under the suite's common names."""
        raise NotImplementedError

    def input_columns(self) -> list[str]:
        """Return the columns that the raw rows must have beside the label."""
        raise NotImplementedError

    def checked(self, rows: Dataset, split: str) -> dict[str, list[Any]]:
        """Return the inputs and `label`."""
        require_columns(rows, [*self.input_columns(), self.label], f"{self.name}, split {split}")
        labels = [self._checked_label(value, split, row) for row, value in enumerate(rows[self.label])]
        return {**self.inputs(rows, split), "label": labels}

    def _checked_label(self, value: object, split: str, row: int) -> int | float:
        """Return the label as a class index or a finite float."""
        classes = self.class_names()
        if classes is None:
            if isinstance(value, int | float) and math.isfinite(value):
                return float(value)
            wanted = "a number"
        else:
            if isinstance(value, str) and value in classes:
                return classes.index(value)
            if isinstance(value, int) and 0 <= value < len(classes):
                return int(value)
            wanted = f"0 to {len(classes) - 1} or one of {', '.join(classes[:20])}{', ...' * (len(classes) > 20)}"
        hint = " (this split has no public labels)" if value == -1 else ""
        raise InputError(f"{self.name}, split {split}, row {row}: label {value!r} is not {wanted}{hint}")
