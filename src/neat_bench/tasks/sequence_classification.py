"""Sequence classification and regression: encoding, collation, loss and prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neat_bench.data.spec import Data
from neat_bench.files import sha256_of_text
from neat_bench.tasks.classification import ClassificationTask

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


@dataclass(frozen=True)
class SequenceClassification(ClassificationTask):
    """A head with one logit a class (or one output for regression) on a sequence encoder.

    The head, and with it the pooling, is transformers' own for the architecture
    (AutoModelForSequenceClassification): first token, then dense + tanh for RoBERTa, the pretrained
    pooler for BERT. The loss is cross-entropy, or mean squared error for regression.
    """

    data: Data
    max_length: int

    auto_class = "AutoModelForSequenceClassification"
    reads_text = True

    def encode(self, rows: Dataset, tokenizer: Any, cache: Path, training: bool) -> Dataset:
        """Return the rows with `input_ids` (and the tokenizer's other columns), `labels` and `length`.

        Tokenised once: the result is kept under `cache` by the content of rows and tokenizer.
        """
        texts = [name for name in ("text_a", "text_b") if name in rows.column_names]

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            encoded = tokenizer(*(batch[name] for name in texts), truncation=True, max_length=self.max_length)
            lengths = [len(ids) for ids in encoded["input_ids"]]
            return {**encoded, "labels": batch["label"], "length": lengths}

        vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
        del vocabulary["truncation"], vocabulary["padding"]  # state of its last call
        content = (vocabulary, self.max_length, rows.to_dict())
        key = sha256_of_text(repr(content))[:32]
        cache.mkdir(parents=True, exist_ok=True)
        return rows.map(
            tokenize,
            batched=True,
            remove_columns=[name for name in rows.column_names if name != "id"],
            cache_file_name=str(cache / f"{key}.arrow"),
            new_fingerprint=key,
            desc=None,
        )

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return a function from rows to a batch of tensors padded to the longest row in it."""
        from transformers import DataCollatorWithPadding

        pad = DataCollatorWithPadding(tokenizer)

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            return pad([{name: row[name] for name in row if name != "length"} for row in rows])

        return collate

    def logits(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the outputs of the head, batch x `outputs`."""
        inputs = {name: value for name, value in batch.items() if name not in ("id", "labels")}
        return model(**inputs).logits
