import numpy as np
import pytest

from neat_bench.errors import InputError
from neat_bench.evaluation.metrics import metric
from neat_bench.evaluation.protocols import Protocol, Scores, apply_protocols, split_evaluation

LABELS = np.array([0, 0, 1, 1, 1, 0])
PREDICTIONS = np.array([0, 1, 1, 1, 0, 0])


@pytest.mark.parametrize(("name", "expected"), [
    ("accuracy", 4 / 6),
    ("f1", 2 * 2 / (2 * 2 + 1 + 1)),
    ("matthews_correlation", (2 * 2 - 1 * 1) / np.sqrt(3 * 3 * 3 * 3)),
    ("pearson", np.corrcoef(LABELS, PREDICTIONS)[0, 1]),
])  # fmt: skip
def test_metrics_equal_their_definitions(name, expected):
    assert metric(name)(PREDICTIONS, LABELS) == pytest.approx(expected)


def test_rank_correlation_sees_order_only():
    values = np.array([0.1, 0.2, 5.0, 4.0])
    assert metric("spearman")(np.exp(values), values) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews_correlation"])
def test_a_constant_prediction_correlates_with_nothing(name):
    assert metric(name)(np.ones(6, dtype=int), LABELS) == 0.0


def history():
    """Three evaluations: the selecting half likes the second, the whole split the first."""
    rows = [(0.9, 0.6, 0.95), (0.8, 0.9, 0.7), (0.7, 0.8, 0.6)]
    return [Scores(10 * i, i, 0.1, *({"accuracy": value} for value in row)) for i, row in enumerate(rows)]


def test_each_protocol_chooses_by_its_own_rule():
    chosen = apply_protocols(history(), "accuracy")
    assert chosen["split_validation"] == (1, {"accuracy": 0.7})
    assert chosen["best_dev"] == (0, {"accuracy": 0.9})
    assert chosen["last"] == (2, {"accuracy": 0.7})


def test_ties_go_to_the_earlier_evaluation():
    same = [Scores(i, i, 0.0, {"accuracy": 0.5}, {"accuracy": 0.5}, {"accuracy": i / 10}) for i in range(3)]
    assert [index for index, _ in apply_protocols(same, "accuracy").values()] == [0, 0, 2]


# RED's sizes (PAPER.md): selecting and reporting items of the official validation sets
@pytest.mark.parametrize(("items", "selecting", "expected"), [
    (1043, None, (522, 521)), (872, None, (436, 436)), (408, None, (204, 204)), (1500, None, (750, 750)),
    (277, None, (139, 138)), (5463, 1000, (1000, 4463)), (40430, 1000, (1000, 39430)), (9815, 1000, (1000, 8815)),
])  # fmt: skip
def test_split_sizes_are_reds(items, selecting, expected):
    mask = split_evaluation(items, selecting, seed=42)
    assert (mask.sum(), (~mask).sum()) == expected


def test_the_split_follows_the_seed():
    assert np.array_equal(split_evaluation(100, None, 1), split_evaluation(100, None, 1))
    assert not np.array_equal(split_evaluation(100, None, 1), split_evaluation(100, None, 2))


def test_a_split_without_two_sides_is_an_error():
    for items, selecting in ((1, None), (100, 100)):
        with pytest.raises(InputError, match="both sides"):
            split_evaluation(items, selecting, 0)


def test_unknown_protocol():
    with pytest.raises(InputError, match="did you mean 'best_dev'"):
        Protocol(name="best_def")
