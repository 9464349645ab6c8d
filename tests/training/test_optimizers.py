import pytest
import torch
from torch import nn

from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.methods.base import attach
from neat_bench.models.roles import head_names
from neat_bench.training.optimizers import AdamW
from neat_bench.training.schedules import Schedule
from neat_bench.training.settings import Seeds, TrainerSettings


def test_groups_part_head_and_adapter_and_spare_norms_and_biases(make_model):
    model, _ = make_model("bert")
    attach(build(compose(["method=full"])).method, model)
    head = head_names(model)
    optimizer = AdamW(name="adamw", lr=1e-3, head_lr=1e-2, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in optimizer.groups(model, head):
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert found.keys() == set(names.values())
    for name, (lr, decay) in found.items():
        assert lr == (1e-2 if name in head else 1e-3)
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name


def test_the_heads_rate_is_the_adapters_unless_given():
    groups = AdamW(name="adamw", lr=2e-3).groups(nn.Linear(2, 2), {"weight"})
    assert {group["lr"] for group in groups} == {2e-3}


@pytest.mark.parametrize(("name", "expected"), [
    ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]), ("constant", [0, 0.5, 1, 1, 1, 1]),
    ("cosine", [0, 0.5, 1, 0.8536, 0.5, 0.1464]),
])  # fmt: skip
def test_schedules_warm_up_by_ratio_and_decay(name, expected):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule(name=name, warmup_ratio=1 / 3).build(optimizer, 6)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, abs=1e-4)


def test_warmup_steps_win_over_the_ratio():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule(name="constant", warmup_ratio=0.5, warmup_steps=1).build(optimizer, 10)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Schedule(name="liner"), "did you mean 'linear'"),
    (lambda: Schedule(name="linear", warmup_ratio=2.0), "warmup_ratio"),
    (lambda: AdamW(name="adamw", head_lr=-1.0), "head_lr"),
    (lambda: AdamW(name="adamw", weight_decay=-1.0), "weight_decay"),
    (lambda: TrainerSettings(precision="fb16"), "did you mean"),
    (lambda: TrainerSettings(clip_norm=0.0), "clip_norm"),
    (lambda: TrainerSettings(batch_size=0), "batch_size"),
    (lambda: TrainerSettings(device="gpu"), "device"),
])  # fmt: skip
def test_settings_out_of_range(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_seeds_are_the_runs_unless_given():
    assert Seeds(order=7).filled(3) == {"init": 3, "order": 7, "dropout": 3}
