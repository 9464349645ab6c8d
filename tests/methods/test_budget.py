"""Equal budgets: the largest size that does not exceed a number of parameters."""

import pytest
from transformers import BertForSequenceClassification

from conftest import method_of, tiny_bert_config
from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.experiment import run
from neat_bench.methods.budget import limit_of, solve


def skeleton():
    return BertForSequenceClassification(tiny_bert_config(num_labels=2, vocab_size=40))


def solved(overrides, asked):
    return solve(method_of(*overrides.split()), asked, skeleton)


@pytest.mark.parametrize(("asked", "limit"), [
    ("0.3M", 300_000), ("18.4K", 18_400), ("300000", 300_000), ("0.1%", 1_000), ("1B", 10**9), ("2.5 M", 2_500_000),
])  # fmt: skip
def test_budgets_are_read(asked, limit):
    assert limit_of(asked, 1_000_000) == limit


@pytest.mark.parametrize("asked", ["much", "-3", "0", "3X", "0.0000001%"])
def test_what_is_no_budget_is_named(asked):
    with pytest.raises(InputError, match="budget"):
        limit_of(asked, 1_000_000)


# parameters a unit of size on the tiny BERT: 3 layers of 32 x 32 query and value, 64 wide feed-forward
@pytest.mark.parametrize(("method", "unit"), [
    ("lora", 6 * 64), ("dora", 6 * 64), ("neat", 6 * 64), ("pissa", 6 * 64), ("melora method.minis=2", 6 * 64),
    ("gift", 2 * 64), ("fourierft", 6), ("vera", 6), ("adalora", 6 * 65), ("houlsby", 6 * 65), ("loreft", 3 * 65),
    ("hiwi", 3 * 2 * 96), ("sibo", 6 * 64), ("loretta_rep", None), ("lorta", 32 + 8 + 4 + 4 + 3), ("deep_lora", None),
])  # fmt: skip
def test_the_largest_size_within_the_budget_is_found(method, unit):
    changed, found = solved(f"method={method}", "2.9K")
    (size,) = found.solved.values()
    assert 0 < found.met <= found.limit == 2_900
    assert getattr(changed, changed.size) == size
    if unit is not None:
        assert found.met + unit > found.limit
        fixed = {"dora": 6 * 32, "vera": 6 * 32, "houlsby": 6 * 32}.get(method, 0)
        assert found.met == size * unit + fixed


def test_shares_are_solved_by_the_entries():
    for method in ("pafi", "sara"):
        changed, found = solved(f"method={method}", "1K")
        entries = 3 * (4 * 32 * 32 + 2 * 32 * 64)
        assert found.met == 1_000
        assert changed.share == pytest.approx(1_000 / entries)


def test_a_method_of_fixed_size_says_whether_it_fits():
    _, found = solved("method=red", "1K")
    assert (found.met, found.solved) == (3 * 64, {})
    with pytest.raises(
        InputError, match=r"budget 100 is 100 parameters; the nearest red can is 192 .its size is fixed"
    ):
        solved("method=red", "100")
    with pytest.raises(InputError, match=r"the nearest lora can is 384 .rank 1"):
        solved("method=lora", "300")


def test_a_size_stops_at_what_the_matrices_take():
    _, found = solved("method=lora", "1B")
    assert found.solved == {"rank": 32}


def test_a_run_says_what_was_asked_and_met(tiny_overrides):
    config = build(compose([*tiny_overrides, "method=lora", "budget=1K"]))
    record = run(config, ["method=lora", "budget=1K"])
    assert record["budget"] == {"asked": "1K", "limit": 1_000, "met": 768, "solved": {"rank": 2}}
    assert record["parameters"]["trainable"] - record["parameters"]["head"] == 768
    assert record["config"]["budget"] == "1K"
