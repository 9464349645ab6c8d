"""Text classification and regression data: GLUE, packaged sets and a user's own files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neat_bench.data.spec import LabelledSpec
from neat_bench.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class TextClassification(LabelledSpec):
    """Texts, or pairs of them, with a label.

    text: one column, or two for sentence pairs; they become `text_a` and `text_b`. max_length: tokens.
    """

    text: list[str] = field(default_factory=lambda: ["text"])
    max_length: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.text) not in (1, 2):
            raise InputError(f"dataset.text names one column or two, not {len(self.text)}")
        if self.max_length < 3:
            raise InputError(f"dataset.max_length is at least 3 tokens, not {self.max_length}")

    def input_columns(self) -> list[str]:
        """Return the text columns."""
        return self.text

    def inputs(self, rows: Dataset, split: str) -> dict[str, list]:
        """Return `text_a` and, for pairs, `text_b`; raises InputError for a value that is not a text."""
        found = {}
        for name, column in zip(("text_a", "text_b"), self.text, strict=False):
            found[name] = list(rows[column])
            for row, value in enumerate(found[name]):
                if not isinstance(value, str):
                    raise InputError(f"{self.name}, split {split}, row {row}: {column} is not a text ({value!r})")
        return found
