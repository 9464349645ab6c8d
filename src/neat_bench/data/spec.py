"""What every data set's description shares: names, splits, labels, and where rows come from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neat_bench.data.sources import HubSource, Provenance, read_split
from neat_bench.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

METRICS = ("accuracy", "f1", "matthews_correlation", "pearson", "spearman")


@dataclass(frozen=True)
class Data:
    """Checked rows: `id` (int), the suite's input columns, and `label`.

    `label` is an integer in [0, len(classes)) or, where `classes` is None (regression), a float. With a test
    split, `evaluation` holds the selecting rows and then the test's, and `selects` masks the former; without
    one `selects` is None and the protocol splits the rows.
    """

    train: Dataset
    evaluation: Dataset
    classes: list[str] | None
    provenance: list[Provenance]
    selects: np.ndarray | None = None


@dataclass(kw_only=True)
class DatasetSpec:
    """A classification (or, without `classes`, regression) data set read from columns of a table.

    classes: the class names in label order; a label column may hold their indices or the names themselves.
    files: split name -> parquet or CSV file, for data of one's own. test_split: a split that only reports,
    while evaluation_split selects; None where one split does both. selection_items: how many items of that
    one split select the epoch under the split_validation protocol (None: half).
    """

    name: str
    label_name: str = ""
    label: str = "label"
    classes: list[str] | None = None
    metric: str = "accuracy"
    extra_metrics: list[str] = field(default_factory=list)
    train_split: str = "train"
    evaluation_split: str = "validation"
    test_split: str | None = None
    selection_items: int | None = None
    files: dict[str, str] | None = None
    hub: HubSource | None = None

    def __post_init__(self) -> None:
        for metric in [self.metric, *self.extra_metrics]:
            if metric not in METRICS:
                raise InputError(f"unknown metric '{metric}' in dataset.metric{nearest(metric, METRICS)}")
        if self.classes is not None and len(self.classes) < 2:
            raise InputError("dataset.classes names at least two classes (leave it out for regression)")
        if self.name.count("/") != 1:
            raise InputError(f"dataset.name has the form suite/task, not '{self.name}'")

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
        return read_split(self.name, split, data_root, self.files, self.hub)

    def inputs(self, rows: Dataset, split: str) -> dict[str, list]:
        """Return the checked input columns under the suite's common names."""
        raise NotImplementedError

    def input_columns(self) -> list[str]:
        """Return the columns that the raw rows must have beside the label."""
        raise NotImplementedError

    def load(self, data_root: Path, limit_train: int | None, limit_evaluation: int | None) -> Data:
        """Read and check all splits; the limits keep the first rows of each only.

        Raises InputError for missing columns, empty splits, inputs that cannot be used and labels out of range.
        """
        from datasets import concatenate_datasets

        splits, provenance = [], []
        names = (self.train_split, self.evaluation_split, self.test_split)
        for split, limit in zip(names, (limit_train, limit_evaluation, limit_evaluation), strict=True):
            if split is None:
                continue
            rows, origin = self.read(split, data_root)
            if limit is not None:
                rows = rows.select(range(min(limit, len(rows))))
            splits.append(self._checked(rows, split))
            provenance.append(origin)
        if self.test_split is None:
            return Data(splits[0], splits[1], self.classes, provenance)
        evaluation = concatenate_datasets(splits[1:])
        evaluation = evaluation.remove_columns("id").add_column("id", list(range(len(evaluation))))
        selects = np.arange(len(evaluation)) < len(splits[1])
        return Data(splits[0], evaluation, self.classes, provenance, selects)

    def _checked(self, rows: Dataset, split: str) -> Dataset:
        """Return the rows under the common column names, or say what is wrong with them."""
        from datasets import Dataset

        for column in [*self.input_columns(), self.label]:
            if column not in rows.column_names:
                raise InputError(
                    f"{self.name}, split {split}: no column '{column}'; it has {', '.join(rows.column_names)}"
                )
        if len(rows) == 0:
            raise InputError(f"{self.name}, split {split}: no rows")
        labels = [self._checked_label(value, split, row) for row, value in enumerate(rows[self.label])]
        return Dataset.from_dict({"id": list(range(len(rows))), **self.inputs(rows, split), "label": labels})

    def _checked_label(self, value: object, split: str, row: int) -> int | float:
        """Return the label as a class index or a finite float."""
        if self.classes is None:
            if isinstance(value, int | float) and math.isfinite(value):
                return float(value)
            wanted = "a number"
        else:
            if isinstance(value, str) and value in self.classes:
                return self.classes.index(value)
            if isinstance(value, int) and 0 <= value < len(self.classes):
                return int(value)
            wanted = f"0 to {len(self.classes) - 1} or one of {', '.join(self.classes)}"
        hint = " (this split has no public labels)" if value == -1 else ""
        raise InputError(f"{self.name}, split {split}, row {row}: label {value!r} is not {wanted}{hint}")
