"""The loop on a tiny model: what it promises about determinism, accumulation, stopping and failure."""

import json
import math

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from neat_bench.errors import InputError
from neat_bench.experiment import path_of, run
from neat_bench.methods.full import Full
from neat_bench.training.batches import LengthBucketedBatches
from neat_bench.training.optimizers import SGD
from neat_bench.training.schedules import Schedule
from neat_bench.training.settings import TrainerSettings
from neat_bench.training.trainer import Trainer, make_accelerator

ROWS = Dataset.from_dict(
    {"x": [[i / 10.0, 1.0] for i in range(22)], "labels": [i % 2 for i in range(22)], "length": [2] * 22}
)


class LeastSquares:
    """A task without text: one linear map, squared error."""

    def weight(self, batch):
        return len(batch["labels"])

    def loss(self, model, batch):
        return (model(batch["x"]).squeeze(-1) - batch["labels"].float()).square().mean()


def fit(evaluate=None, log=None, lr=0.05, noting=None, task=None, on_oom="fail", **settings):
    """Train the linear map and return it with its trainer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    options = TrainerSettings(device="cpu", **({"epochs": 2, "batch_size": 8, "clip_norm": None} | settings))
    schedule = Schedule(name="linear")
    trainer = Trainer(
        options,
        SGD(name="sgd", lr=lr),
        schedule,
        make_accelerator(options),
        log or (lambda values, step: None),
        Full(name="full", label="Full"),
        on_oom=on_oom,
    )

    def collate(rows):
        if noting is not None:
            noting(rows)
        return {name: torch.tensor([row[name] for row in rows]) for name in ("x", "labels")}

    calls = []

    def record(model, epoch, step, train_loss):
        calls.append((epoch, step, train_loss))
        return ({"score": 0.0}, evaluate(step) if evaluate else 0.0)

    trainer.fit(model, task or LeastSquares(), set(), ROWS, collate, 0, record)
    return model, trainer, calls


def test_every_epoch_has_an_order_of_its_own_and_it_is_the_samplers():
    """accelerate calls a set_epoch with a count of its own, which stands still while a loader is not drained."""
    seen = []
    fit(epochs=3, batch_size=4, noting=lambda rows: seen.extend(round(10 * row["x"][0]) for row in rows))
    epochs = [seen[at : at + len(ROWS)] for at in range(0, len(seen), len(ROWS))]
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs) == 3
    sampler = LengthBucketedBatches(ROWS["length"], 4, 1, 0)
    for number, epoch in enumerate(epochs):
        sampler.start_epoch(number)
        assert epoch == [row for batch in sampler for row in batch]


def test_the_loop_is_plain_gradient_descent():
    """The same steps written out by hand give the same weights."""
    model, _, _ = fit(epochs=1, batch_size=22)
    torch.manual_seed(0)
    by_hand = torch.nn.Linear(2, 1)
    x, labels = torch.tensor(ROWS["x"]), torch.tensor(ROWS["labels"]).float()
    (by_hand(x).squeeze(-1) - labels).square().mean().backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.05 * parameter.grad
    torch.testing.assert_close(model.weight, by_hand.weight)
    torch.testing.assert_close(model.bias, by_hand.bias)


def test_accumulation_equals_one_batch_of_the_same_size():
    """The last step of an epoch has 6 of 16 items, so micro-batches must count by their size."""
    accumulated, _, _ = fit(batch_size=4, accumulation=4)
    whole, _, _ = fit(batch_size=16, accumulation=1)
    differences = torch.cat([accumulated.weight - whole.weight, accumulated.bias[None] - whole.bias[None]], dim=1)
    assert differences.abs().max() < 1e-6
    assert differences.mean().abs() < 1e-6


class LittleMemory(LeastSquares):
    """Has no room for more than `most` items at a time."""

    def __init__(self, most, error):
        self.most, self.error = most, error

    def loss(self, model, batch):
        if len(batch["labels"]) > self.most:
            raise self.error
        return super().loss(model, batch)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["gpu", "cpu", "python"])
def test_on_oom_halves_the_micro_batch_and_keeps_the_effective_one(error, capsys):
    """In the middle of the first step, whose first micro-batches have left gradients behind."""
    halved, trainer, calls = fit(task=LittleMemory(3, error), batch_size=8, accumulation=2, on_oom="halve")
    expected, plain, expected_calls = fit(batch_size=2, accumulation=8)
    torch.testing.assert_close(halved.weight, expected.weight, rtol=0, atol=1e-6)
    assert [call[2] for call in calls] == pytest.approx([call[2] for call in expected_calls], abs=1e-6)
    assert trainer.halved_at == [{"step": 1, "batch_size": 4}, {"step": 1, "batch_size": 2}]
    assert (trainer.timing.items, trainer.timing.steps) == (plain.timing.items, plain.timing.steps)
    assert "micro-batches of 2 from here" in capsys.readouterr().err


def test_a_batch_that_cannot_be_halved_says_so():
    with pytest.raises(InputError, match=r"out of memory at step 1, micro-batches of 8: set on_oom=halve"):
        fit(task=LittleMemory(3, OUT_OF_MEMORY[0]))
    with pytest.raises(InputError, match=r"micro-batches of 1: set a smaller dataset\.max_length"):
        fit(task=LittleMemory(0, OUT_OF_MEMORY[0]), on_oom="halve")
    with pytest.raises(RuntimeError, match="another matter"):
        fit(task=LittleMemory(3, RuntimeError("another matter")), on_oom="halve")


def test_evaluation_each_epoch_or_every_n_steps():
    assert [call[:2] for call in fit()[2]] == [(0, 3), (1, 6)]
    assert [call[:2] for call in fit(evaluate_every=2)[2]] == [(0, 2), (1, 4), (1, 6)]


def test_max_steps_end_the_run_inside_an_epoch_and_set_the_schedule():
    rates = []
    _, trainer, calls = fit(
        epochs=9, max_steps=4, log_every=1, log=lambda v, s: rates.append(v.get("train/lr_adapter"))
    )
    assert trainer.timing.steps == 4
    assert [call[:2] for call in calls] == [(0, 3), (1, 4)]
    assert [rate for rate in rates if rate is not None] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])


def test_patience_stops_after_evaluations_without_a_better_score():
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    _, _, calls = fit(epochs=5, patience=2, evaluate=lambda step: next(scores))
    assert len(calls) == 4


def test_what_is_logged():
    logged = []
    fit(log=lambda values, step: logged.append((step, values)), log_every=2)
    names = {name for _, values in logged for name in values}
    assert {
        "train/loss",
        "train/gradient_norm",
        "train/lr_adapter",
        "train/items_per_second",
        "eval/score",
    } <= names
    assert [step for step, values in logged if "train/loss" in values] == [2, 4, 6]


def test_gradients_are_clipped_to_the_norm():
    free, _, _ = fit(epochs=1, batch_size=22, lr=1.0)
    clipped, _, _ = fit(epochs=1, batch_size=22, lr=1.0, clip_norm=1e-3)
    torch.manual_seed(0)
    start = torch.nn.Linear(2, 1)

    def moved(model):
        return math.sqrt(
            sum((a - b).square().sum().item() for a, b in zip(model.parameters(), start.parameters(), strict=True))
        )

    assert moved(clipped) == pytest.approx(1e-3, rel=1e-2)
    assert moved(free) > 0.1


def test_a_loss_that_is_not_finite_stops_the_run_with_one_line():
    with pytest.raises(InputError, match=r"training loss is (nan|inf) at step \d+: lower optimizer\.lr"):
        fit(lr=1e30, epochs=3)


def weights_of(config):
    run(config, [])
    return load_file(path_of(config).with_suffix(".adapter") / "adapter.safetensors")


@pytest.mark.parametrize("method", ["neat", "full"])
def test_two_runs_of_one_config_agree_bit_for_bit(tiny_config, tmp_path, method):
    found = []
    for name in ("one", "two"):
        config = tiny_config(f"method={method}", "trainer.save_adapter=true", f"paths.results={tmp_path}/{name}")
        weights = weights_of(config)
        record = json.loads(path_of(config).read_text())
        found.append((weights, record["results"], record["history"]))
    (first, results, history), (second, again, history_again) = found
    assert results == again
    assert history == history_again
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_each_seed_moves_its_own_part(tiny_config, tmp_path):
    """Another seed changes initial values, order and dropout; one alone can be moved too."""

    def losses(*overrides):
        config = tiny_config("method=neat", "rerun=true", "optimizer.lr=1e-2", *overrides)
        return [scores["train_loss"] for scores in run(config, [])["history"]]

    base = losses()
    assert losses() == base
    moved = [losses(f"seeds.{part}=5") for part in ("init", "order", "dropout")] + [losses("seed=5")]
    assert all(other != base for other in moved)
    assert losses("seed=5", "seeds={init:0,order:0,dropout:0}") == base


def test_bf16_trains(tiny_config):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    record = run(tiny_config("method=neat", "trainer.precision=bf16"), [])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert math.isfinite(record["history"][-1]["train_loss"])
