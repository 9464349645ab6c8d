"""NEAT, LoRA and DoRA against Hugging Face peft: outputs, gradients of every adapter parameter, counts."""

import peft
import pytest
import torch

from conftest import logits_of
from neat_bench.config import build, compose
from neat_bench.methods.base import attach


def compare(make_model, ours_overrides, theirs_config, names):
    """Copy our adapter's moved values into peft's and compare; `names` maps our parameter names to peft's."""
    ours, inputs = make_model("bert")
    torch.manual_seed(0)
    attach(build(compose(ours_overrides)).method, ours)
    ours.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if ".maps." in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    base, _ = make_model("bert")
    theirs = peft.get_peft_model(base, theirs_config).double().eval()
    their_parameters = dict(theirs.named_parameters())
    pairs = []
    for name, parameter in ours.named_parameters():
        if ".maps." not in name:
            continue
        place, _, tail = name.partition(".maps.")
        key = f"base_model.model.{place}.{names(tail.partition('.')[2])}"
        pairs.append((name, parameter, their_parameters[key]))
        with torch.no_grad():
            their_parameters[key].copy_(parameter)
    torch.testing.assert_close(logits_of(ours, inputs), logits_of(theirs, inputs), rtol=1e-9, atol=1e-9)
    for model in (ours, theirs):
        logits_of(model, inputs).square().sum().backward()
    for name, mine, yours in pairs:
        assert mine.grad.abs().max() > 0, name
        torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    counted = sum(parameter.numel() for name, parameter in theirs.named_parameters() if parameter.requires_grad)
    assert sum(mine.numel() for _, mine, _ in pairs) == counted


@pytest.mark.parametrize(("activation", "act_fn"), [("relu", "relu"), ("gelu", "gelu"), ("tanh", "tanh"),
                                                    ("sigmoid", "sigmoid"), ("leaky_relu", "leaky_relu"),
                                                    ("identity", "linear")])  # fmt: skip
@pytest.mark.parametrize("depth", [2, 4, 6])
def test_neat_equals_peanut(make_model, depth, activation, act_fn):
    def names(tail):
        part, *rest = tail.split(".")
        if part == "B":
            return "peanut_B.default.weight"
        if part == "A":
            return "peanut_A.default.weight"
        return f"peanut_{part}.default.{rest[0]}.weight"

    from transformers.activations import ACT2FN

    if act_fn == "leaky_relu":  # transformers' slope is torch's default too
        assert ACT2FN[act_fn](torch.tensor(-1.0)) == torch.nn.functional.leaky_relu(torch.tensor(-1.0))
    # peft's depth counts the encoders, the paper's all layers
    config = peft.PeanutConfig(
        r=4, depth=(depth - 2) // 2, act_fn=act_fn, scaling=0.7, target_modules=["query", "value"]
    )
    overrides = [
        "method=neat",
        "method.rank=4",
        f"method.depth={depth}",
        f"method.activation={activation}",
        "method.scale=0.7",
    ]
    compare(make_model, overrides, config, names)


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_lora_equals_peft(make_model, rank_stabilised):
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=rank_stabilised, target_modules=["query", "value"])
    overrides = [
        "method=lora",
        "method.rank=4",
        "method.alpha=6",
        f"method.rank_stabilised={rank_stabilised}",
    ]
    compare(make_model, overrides, config, lambda tail: f"lora_{tail}.default.weight")


def test_dora_equals_peft(make_model):
    config = peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["query", "value", "intermediate.dense"])
    overrides = ["method=dora", "method.rank=4", "method.alpha=6", "method.targets=[query,value,mlp_up]"]

    def names(tail):
        return "lora_magnitude_vector.default.weight" if tail == "magnitude" else f"lora_{tail}.default.weight"

    compare(make_model, overrides, config, names)
