"""What every method must keep to, wherever it applies: start, count, gradients, merging, saving, learning."""

import pytest
import torch
import torch.nn.functional as F
from cases import (
    CASES,
    CLASSIFIERS,
    EDITS,
    EVERY,
    MAPS,
    MIXED,
    PEFT,
    SELECTIONS,
    adapter_parameters,
    attached,
    learn,
    method_named,
    move,
    pairs,
    sizes_of,
)
from torch import nn

from conftest import logits_of, method_of, tiny_models
from neat_bench.config import names_in
from neat_bench.methods.adapted import AdaptedLinear, layers_of, merge, unmerge
from neat_bench.methods.base import attach
from neat_bench.methods.state import load_state, save_state, trained_state
from neat_bench.models.roles import head_names


def test_every_method_and_every_architecture_is_under_test():
    shipped = set(names_in("method"))
    assert shipped - {"model_projection"} == {name.split()[0].rstrip(",") for name in CASES}
    assert set(EVERY) == set(tiny_models())


@pytest.mark.parametrize(("name", "architecture"), pairs(CASES))
def test_step_zero_is_what_the_method_says(make_model, name, architecture):
    plain, inputs = make_model(architecture)
    before = logits_of(plain, inputs)
    method, model, _ = attached(make_model, name, architecture)
    # made in float32: factors, and what a base loses to them; DoRA's norms and the roots of weights
    tolerance = 1e-5 if name.split()[0] in ("pissa", "milora", "lora_ga") else 1e-6
    same = torch.allclose(logits_of(model, inputs), before, rtol=0, atol=tolerance)
    assert same == method.starts_at_pretrained


@pytest.mark.parametrize(("name", "architecture"), pairs(MAPS | SELECTIONS | MIXED))
def test_merge_equals_the_branches_and_unmerge_gives_the_bits_back(make_model, name, architecture):
    _, model, inputs = attached(make_model, name, architecture)
    move(model)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    branched = logits_of(model, inputs)
    merge(model)
    layers = [layer for layer in model.modules() if isinstance(layer, AdaptedLinear)]
    assert all(layer._pretrained is not None for layer in layers)
    assert bool(layers) == (name not in SELECTIONS)
    difference = logits_of(model, inputs) - branched
    assert difference.abs().max() < 1e-8
    assert difference.mean().abs() < 1e-9
    unmerge(model)
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in after.items())


@pytest.mark.parametrize(("name", "architecture"), pairs(EDITS, CLASSIFIERS))
def test_what_cannot_be_merged_stays_beside_the_weights(make_model, name, architecture):
    _, model, inputs = attached(make_model, name, architecture)
    start = logits_of(model, inputs)
    move(model)
    edited = logits_of(model, inputs)
    assert not torch.allclose(edited, start)
    merge(model)
    assert torch.equal(logits_of(model, inputs), edited)
    unmerge(model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "architecture"), pairs(MAPS | MIXED, CLASSIFIERS))
def test_both_faces_agree_on_outputs_and_gradients(make_model, name, architecture, bias):
    """`forward` may be cheaper than `merged`, never another function."""
    if not bias and name == "hiwi":
        pytest.skip("it edits biases")
    _, model, _ = attached(make_model, name, architecture)
    move(model)
    for layer, role, adapted, weight in list(layers_of(model))[:4]:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias).double().requires_grad_(False)
        linear.weight.data = weight.detach().clone()
        if bias:
            rows = layer.rows_of(role)
            linear.bias.data = (layer.base.bias if rows is None else layer.base.bias[slice(*rows)]).detach().clone()
        torch.manual_seed(0)
        x = torch.randn(3, 5, weight.shape[1], dtype=torch.float64, requires_grad=True)
        target = torch.randn(3, 5, weight.shape[0], dtype=torch.float64)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        found = []
        for output in (adapted(x, linear), F.linear(x, *adapted.merged(linear.weight, linear.bias))):
            found.append([output, *torch.autograd.grad((output * target).sum(), [x, *trained], allow_unused=True)])
        for forward, merged in zip(*found, strict=True):
            torch.testing.assert_close(forward, merged, rtol=1e-7, atol=1e-9)
        assert found[0][0].abs().max() > 0


@pytest.mark.parametrize(("name", "architecture"), pairs(CASES))
def test_what_trains_is_the_methods_own_and_all_of_it_gets_a_gradient(make_model, name, architecture):
    method = method_named(name)
    model, inputs = make_model(architecture)
    pretrained, head = dict(model.named_parameters()), head_names(model)
    method, changed, _ = attached(lambda *_: (model, inputs), method, architecture)
    move(changed)
    selected = {key for key, value in pretrained.items() if value.requires_grad}
    apart = set() if name in ("untuned", "inca") else head  # InCA answers by heads of its own
    selects = CASES[name].selects
    if name in MIXED:
        assert apart < selected <= {key for key in pretrained if selects(key)} | apart
    else:
        assert selected == {key for key in pretrained if selects(key)} | apart
    if name == "untuned":
        return
    logits_of(changed, inputs).square().mean().backward()
    trained = {key for key, value in changed.named_parameters() if value.requires_grad}
    unused = {key for key in trained if "mask_token" in key}  # used with masked images only
    assert {key for key, value in changed.named_parameters() if value.grad is not None} == trained - unused


@pytest.mark.parametrize(
    ("name", "architecture"), [pair for pair in pairs(CASES) if CASES[pair[0]].each or CASES[pair[0]].whole]
)
def test_parameters_are_counted_by_the_docstrings_formula(make_model, name, architecture):
    plain, _ = make_model(architecture)
    method, model, _ = attached(make_model, name, architecture)
    case, sizes = CASES[name], sizes_of(method, plain)
    each = case.each and sum(case.each(method, out, inputs) for _, out, inputs in sizes)
    expected = each or case.whole(method, sizes)
    assert sum(value.numel() for value in adapter_parameters(model).values()) == expected > 0
    # as budgets and count_parameters count: without weights, shared factors once
    if not method.prepare_batches and method.size_kind != "share":
        bare = make_model(architecture)[0].to("meta")
        attach(method, bare)
        assert sum(value.numel() for value in adapter_parameters(bare).values()) == expected


@pytest.mark.parametrize(("name", "architecture"), pairs(CASES | PEFT, CLASSIFIERS))
def test_saved_and_loaded_state_gives_the_same_logits_head_included(make_model, name, architecture, tmp_path):
    _, model, inputs = attached(make_model, name, architecture)
    move(model)
    save_state(tmp_path, trained_state(model), {"method": name})
    # no look at a batch: the state has to carry what it gave
    method, fresh, _ = attached(make_model, name, architecture, prepared=False)
    assert torch.allclose(logits_of(fresh, inputs), logits_of(model, inputs)) == (name == "untuned")
    load_state(tmp_path, method, fresh)
    torch.testing.assert_close(logits_of(fresh, inputs), logits_of(model, inputs), rtol=0, atol=1e-6)


LEARNERS = [name for name in (CASES | PEFT) if name not in ("linear_probe", "untuned")]


@pytest.mark.parametrize("name", LEARNERS)
def test_thirty_steps_lower_the_loss(make_model, name):
    method, model, inputs = attached(make_model, name, "bert", torch.float32)
    losses = learn(method, model, inputs)
    assert losses[-1] < losses[0] - 1e-4  # a frozen random head and narrow layers leave little to gain


def test_counts_of_published_settings_on_roberta_base():
    """NEAT-L 0.3M, LoRA 0.3M and RED 18,432, as the papers print them, without any weights."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    for name, expected in (("neat", 294_912), ("lora", 294_912), ("red", 18_432), ("neat_s", 24_576)):
        with torch.device("meta"):
            model = RobertaForSequenceClassification(RobertaConfig(num_labels=2))
            attach(method_of(f"method={name}", "dataset=glue/sst2"), model)
        assert sum(value.numel() for value in adapter_parameters(model).values()) == expected
