import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from neat_bench.data.spec import Data
from neat_bench.tasks.sequence_classification import SequenceClassification

ROWS = Dataset.from_dict({"id": [0, 1, 2], "text_a": ["good", "a bad film", "x " * 50], "label": [1, 0, 1]})


def task(classes=("no", "yes"), max_length=16, tokenizer=None):
    data = Data(ROWS, ROWS, list(classes) if classes else None, [])
    return SequenceClassification(data, tokenizer, max_length=max_length)


@pytest.fixture
def tokenizer(tiny_folder):
    return AutoTokenizer.from_pretrained(tiny_folder)


def test_encoding_truncates_and_is_cached_by_content(tokenizer, tmp_path):
    encoded = task(tokenizer=tokenizer).encode(ROWS, tmp_path, training=True)
    assert encoded["length"][:] == [3, 5, 16]
    assert encoded["labels"][:] == [1, 0, 1]
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert task(tokenizer=tokenizer).encode(ROWS, tmp_path, training=True)[:] == encoded[:]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    task(max_length=8, tokenizer=tokenizer).encode(ROWS, tmp_path, training=True)
    assert len(list(tmp_path.iterdir())) == len(files) + 1


def test_pairs_are_encoded_with_segments(tokenizer, tmp_path):
    pairs = ROWS.add_column("text_b", ["fine", "poor", "great"])
    encoded = task(tokenizer=tokenizer).encode(pairs, tmp_path, training=True)
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 1, 1]


def test_batches_are_padded_to_their_longest_row(tokenizer, tmp_path):
    encoded = task(tokenizer=tokenizer).encode(ROWS, tmp_path, training=True)
    batch = task(tokenizer=tokenizer).collator(training=True)([encoded[0], encoded[1]])
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert "length" not in batch


def test_loss_and_decision():
    class Fixed(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.value = torch.tensor(logits)

        def forward(self, input_ids):
            return type("Output", (), {"logits": self.value})

    batch = {"input_ids": torch.zeros(2, 1), "id": torch.arange(2), "labels": torch.tensor([0, 1])}
    loss = task().loss(Fixed([[2.0, 0.0], [2.0, 0.0]]), batch)
    assert loss.item() == pytest.approx((np.log(1 + np.exp(-2)) + np.log(1 + np.exp(2))) / 2)
    rows = {"labels": [0, 0]}
    decided = task().decide([np.array([2.0, 0.0]), np.array([0.0, 1.0])], rows)
    assert decided.prediction.tolist() == [0, 1]
    assert decided.correct.tolist() == [True, False]
    np.testing.assert_allclose(decided.score, [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))])
    regression = task(classes=None)
    assert regression.outputs == 1
    assert regression.loss(Fixed([[2.0], [3.0]]), batch).item() == pytest.approx(4.0)
    assert regression.decide([np.array([2.5])], {"labels": [2.0]}).prediction.tolist() == [2.5]
