"""Sequence classification and regression: encoding, collation, loss and prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neat_bench.tasks.classification import ClassificationTask
from neat_bench.tasks.encoding import cached_map, vocabulary_of

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class SequenceClassification(ClassificationTask):
    """A head with one logit a class (or one output for regression) on a sequence encoder.

    The head, and with it the pooling, is transformers' own for the architecture
    (AutoModelForSequenceClassification): first token, then dense + tanh for RoBERTa, the pretrained
    pooler for BERT. The loss is cross-entropy, or mean squared error for regression.
    """

    max_length: int

    auto_class = "AutoModelForSequenceClassification"
    reads_text = True

    def encode(self, rows: Dataset, cache: Path, training: bool) -> Dataset:
        """Return the rows with `input_ids` (and the tokenizer's other columns), `labels` and `length`."""
        texts = [name for name in ("text_a", "text_b") if name in rows.column_names]

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            encoded = self.tokenizer(*(batch[name] for name in texts), truncation=True, max_length=self.max_length)
            lengths = [len(ids) for ids in encoded["input_ids"]]
            return {**encoded, "labels": batch["label"], "length": lengths}

        content = repr((vocabulary_of(self.tokenizer), self.max_length, rows.to_dict()))
        return cached_map(rows, tokenize, content.encode(), cache, batched=True)

    def collator(self, training: bool) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return a function from rows to a batch of tensors padded to the longest row in it."""
        from transformers import DataCollatorWithPadding

        pad = DataCollatorWithPadding(self.tokenizer)

        used = (*self.tokenizer.model_input_names, "labels", "id")

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            return pad([{name: row[name] for name in used if name in row} for row in rows])

        return collate

    def logits(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the outputs of the head, batch x `outputs`."""
        inputs = {name: value for name, value in batch.items() if name not in ("id", "labels")}
        return model(**inputs).logits
