"""Text classification and regression data: GLUE, packaged sets and a user's own files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from neat_bench.data.sources import HubSource, Provenance, read_split
from neat_bench.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

METRICS = ("accuracy", "f1", "matthews_correlation", "pearson", "spearman")


@dataclass(frozen=True)
class TextData:
    """Two splits whose columns are `id` (int), `text_a`, optionally `text_b` (str), and `label`.

    `label` is an integer in [0, len(classes)) or, where `classes` is None (regression), a float.
    """

    train: Dataset
    evaluation: Dataset
    classes: list[str] | None
    provenance: list[Provenance]


@dataclass(kw_only=True)
class TextClassification:
    """A text classification (or, without `classes`, regression) data set read from columns of a table.

    text: one column, or two for sentence pairs. classes: the class names in label order; a label
    column may hold their indices or the names themselves. files: split name -> parquet or CSV file,
    for data of one's own. selection_items: how many evaluation items select the epoch under the
    split_validation protocol (None: half).
    """

    name: str
    label_name: str = ""
    text: list[str] = field(default_factory=lambda: ["text"])
    label: str = "label"
    classes: list[str] | None = None
    metric: str = "accuracy"
    extra_metrics: list[str] = field(default_factory=list)
    train_split: str = "train"
    evaluation_split: str = "validation"
    max_length: int = 128
    selection_items: int | None = None
    files: dict[str, str] | None = None
    hub: HubSource | None = None

    def __post_init__(self) -> None:
        if len(self.text) not in (1, 2):
            raise InputError(f"dataset.text names one column or two, not {len(self.text)}")
        for metric in [self.metric, *self.extra_metrics]:
            if metric not in METRICS:
                raise InputError(f"unknown metric '{metric}' in dataset.metric{nearest(metric, METRICS)}")
        if self.classes is not None and len(self.classes) < 2:
            raise InputError("dataset.classes names at least two classes (leave it out for regression)")
        if self.max_length < 3:
            raise InputError(f"dataset.max_length is at least 3 tokens, not {self.max_length}")
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

    def load(self, data_root: Path, limit_train: int | None, limit_evaluation: int | None) -> TextData:
        """Read and check both splits; the limits keep the first rows only.

        Raises InputError for missing columns, empty splits or texts, and labels out of range.
        """
        splits, provenance = [], []
        for split, limit in ((self.train_split, limit_train), (self.evaluation_split, limit_evaluation)):
            rows, origin = self.read(split, data_root)
            if limit is not None:
                rows = rows.select(range(min(limit, len(rows))))
            splits.append(self._checked(rows, split))
            provenance.append(origin)
        return TextData(splits[0], splits[1], self.classes, provenance)

    def _checked(self, rows: Dataset, split: str) -> Dataset:
        """Return the rows under the common column names, or say what is wrong with them."""
        from datasets import Dataset

        for column in [*self.text, self.label]:
            if column not in rows.column_names:
                raise InputError(
                    f"{self.name}, split {split}: no column '{column}'; it has {', '.join(rows.column_names)}"
                )
        if len(rows) == 0:
            raise InputError(f"{self.name}, split {split}: no rows")
        columns: dict[str, list] = {"id": list(range(len(rows)))}
        for name, column in zip(("text_a", "text_b"), self.text, strict=False):
            columns[name] = list(rows[column])
            for row, value in enumerate(columns[name]):
                if not isinstance(value, str):
                    raise InputError(f"{self.name}, split {split}, row {row}: {column} is not a text ({value!r})")
        columns["label"] = [self._checked_label(value, split, row) for row, value in enumerate(rows[self.label])]
        return Dataset.from_dict(columns)

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
