"""Properties that every method must have, on every architecture where it applies."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import logits_of, tiny_models
from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.methods.base import AdaptedLinear, AdaptedMap, attach, merge, unmerge
from neat_bench.methods.state import load_state, save_state, trained_state
from neat_bench.models.roles import find_places, head_names

METHODS = {
    "neat": "method=neat",
    "neat depth 4": "method=neat method.depth=4 method.activation=tanh method.scale=0.5",
    "neat depth 6, mlp": "method=neat method.depth=6 method.activation=sin method.targets=[mlp_up,mlp_down]",
    "neat identity": "method=neat method.activation=identity",
    "neat_s": "method=neat_s method.layers='1:'",
    "lora": "method=lora",
    "lora rank-stabilised, more": "method=lora method.rank_stabilised=true method.targets=[key,output,mlp_up]",
    "dora": "method=dora method.targets=[query,value,mlp_down]",
    "red": "method=red",
    "red attention, bias only": "method=red method.targets=[output] method.train_scale=false",
    "red block": "method=red method.targets=[block]",
    "full": "method=full",
    "linear_probe": "method=linear_probe",
    "bitfit": "method=bitfit",
    "untuned": "method=untuned",
}
MERGEABLE = [name for name in METHODS if name != "red block"]
ARCHITECTURES = ("bert", "roberta", "vit", "dinov2", "llama", "timm")


def make_method(name):
    rank = (
        [] if name.split()[0] in ("red", "full", "linear_probe", "bitfit", "neat_s", "untuned") else ["method.rank=4"]
    )
    return build(compose([*METHODS[name].split(), *rank])).method


def attached(make_model, method_name, architecture):
    """Return a tiny model with the method attached, or skip where the method cannot apply."""
    model, inputs = make_model(architecture)
    if method_name == "bitfit" and architecture == "llama":
        pytest.skip("Llama has no biases")
    if method_name == "linear_probe" and architecture == "llama":
        pytest.skip("a language model has no task head")
    torch.manual_seed(0)
    method = make_method(method_name)
    attach(method, model)
    model.double()
    return method, model, inputs


def move(model):
    """Take every trainable parameter away from its start, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", METHODS)
def test_step_zero_changes_nothing(make_model, name, architecture):
    model, inputs = make_model(architecture)
    before = logits_of(model, inputs)
    method, changed, _ = attached(make_model, name, architecture)
    assert method.starts_at_pretrained
    # DoRA's magnitudes start as float32 norms
    tolerance = 1e-6 if name.startswith("dora") else 1e-10
    torch.testing.assert_close(logits_of(changed, inputs), before, rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MERGEABLE)
def test_merge_equals_the_branches_and_unmerge_gives_the_bits_back(make_model, name, architecture):
    _, model, inputs = attached(make_model, name, architecture)
    move(model)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    branched = logits_of(model, inputs)
    merge(model)
    merged = logits_of(model, inputs)
    unmerge(model)
    torch.testing.assert_close(merged, branched, rtol=0, atol=1e-10)
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    assert not any(module.base.bias is not None and module.base.bias.requires_grad
                   for module in model.modules() if isinstance(module, AdaptedLinear))  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "name", [name for name in MERGEABLE if name.split()[0] in ("neat", "lora", "dora", "red", "neat_s")]
)
def test_both_faces_of_the_contract_agree_on_outputs_and_gradients(make_model, name, bias):
    """`forward` may be cheaper than `merged`, never another function."""
    model, _ = make_model("bert")
    method = make_method(name)
    place = find_places(model, method.targets, "0:1")[0]
    torch.manual_seed(0)
    linear = nn.Linear(48, 32, bias=bias).double().requires_grad_(False)
    adapted = method.make_map(place, linear.weight).double()
    move(adapted)
    x = torch.randn(3, 5, 48, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 5, 32, dtype=torch.float64)
    found = []
    for output in (adapted(x, linear), F.linear(x, *adapted.merged(linear.weight, linear.bias))):
        gradients = torch.autograd.grad((output * target).sum(), [x, *adapted.parameters()])
        found.append([output, *gradients])
    for forward, merged in zip(*found, strict=True):
        torch.testing.assert_close(forward, merged, rtol=1e-9, atol=1e-9)
        assert forward.abs().max() > 0


@pytest.mark.parametrize("architecture", ["bert", "timm"])
@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_state_gives_the_same_logits_head_included(make_model, name, architecture, tmp_path):
    _, model, inputs = attached(make_model, name, architecture)
    move(model)
    save_state(tmp_path, trained_state(model), {"method": name})
    _, fresh, _ = attached(make_model, name, architecture)
    assert torch.equal(logits_of(fresh, inputs), logits_of(model, inputs)) == (name == "untuned")
    load_state(tmp_path, fresh)
    assert torch.equal(logits_of(fresh, inputs), logits_of(model, inputs))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", METHODS)
def test_only_the_intended_parameters_have_gradients(make_model, name, architecture):
    _, model, inputs = attached(make_model, name, architecture)
    move(model)
    head = head_names(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        assert name == "untuned"
        return
    logits_of(model, inputs).square().sum().backward()
    with_gradient = {key for key, value in model.named_parameters() if value.grad is not None}
    adapters = {
        f"{path}.{key}"
        for path, module in model.named_modules()
        if isinstance(module, AdaptedMap) or path.endswith("hidden_edit")
        for key, _ in module.named_parameters()
    }
    everything = {key for key, _ in model.named_parameters()}
    intended = {
        "full": everything,
        "linear_probe": head,
        "bitfit": {key for key in everything if key.endswith("bias")} | head,
    }.get(name, adapters | head)
    unused = {key for key in intended if "mask_token" in key}  # used with masked images only
    assert with_gradient == intended - unused


def expected_count(name, model):
    """The formula of each method's docstring, computed from the shapes of the places."""
    method = make_method(name)
    kind = name.split()[0].removesuffix(",")
    places = find_places(model, method.targets, method.layers)
    total = 0
    for place in places:
        if kind == "red":
            size = 32 if place.role == "block" else place.module.weight.shape[0]
            total += size * (method.train_scale + method.train_bias)
            continue
        out, inputs = place.module.weight.shape
        out = out if place.rows is None else place.rows[1] - place.rows[0]
        inner = (method.depth - 2) // 2 if kind.startswith("neat") else 0
        total += {
            "neat": 2 * out * method.rank + 2 * inner * method.rank**2 if kind.startswith("neat") else 0,
            "lora": method.rank * (inputs + out),
            "dora": method.rank * (inputs + out) + out,
        }[kind.removesuffix("_s")]
    return total


@pytest.mark.parametrize("architecture", ["bert", "llama", "timm"])
@pytest.mark.parametrize(
    "name", [name for name in METHODS if name.split()[0] in ("neat", "neat_s", "lora", "dora", "red")]
)
def test_parameter_count_is_the_docstrings_formula(make_model, name, architecture):
    plain, _ = make_model(architecture)
    expected = expected_count(name, plain)
    _, model, _ = attached(make_model, name, architecture)
    head = head_names(model)
    trained = sum(value.numel() for key, value in model.named_parameters() if value.requires_grad and key not in head)
    assert trained == expected > 0


def test_counts_of_published_settings_on_roberta_base():
    """NEAT-L 0.3M, LoRA 0.3M and RED 18,432, as the papers print them, without any weights."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    for name, expected in (("neat", 294_912), ("lora", 294_912), ("red", 18_432), ("neat_s", 24_576)):
        with torch.device("meta"):
            model = RobertaForSequenceClassification(RobertaConfig(num_labels=2))
            attach(build(compose([f"method={name}", "dataset=glue/sst2"])).method, model)
        head = head_names(model)
        assert sum(v.numel() for k, v in model.named_parameters() if v.requires_grad and k not in head) == expected


def test_every_architecture_in_the_map_has_a_tiny_model():
    assert set(ARCHITECTURES) == set(tiny_models())


@pytest.mark.parametrize("name", ["neat", "lora", "dora"])
def test_a_rank_that_does_not_fit_is_an_error_that_says_what_fits(make_model, name):
    model, _ = make_model("bert")
    method = build(compose([f"method={name}", "method.rank=33"])).method
    with pytest.raises(InputError, match=r"rank=33 is larger than the matrix at bert\.encoder\.layer\.0.*at most 32"):
        attach(method, model)


def test_a_role_that_the_model_lacks_is_an_error_that_lists_what_is_there(make_model):
    model, _ = make_model("bert")
    method = build(compose(["method=neat", "method.targets=[mlp_gate]"])).method
    with pytest.raises(InputError, match="no 'mlp_gate'; it has query, key, value, output, mlp_up, mlp_down, block"):
        attach(method, model)


def test_dropout_acts_in_training_only(make_model):
    model, inputs = make_model("bert")
    attach(build(compose(["method=neat", "method.dropout=0.5", "method.rank=4"])).method, model)
    model.double()
    move(model)
    assert torch.equal(logits_of(model, inputs), logits_of(model, inputs))
    for module in model.modules():
        if isinstance(module, AdaptedMap):
            module.train()
    assert not torch.equal(logits_of(model, inputs), logits_of(model, inputs))


def test_a_state_of_another_method_is_refused(make_model, tmp_path):
    _, model, _ = attached(make_model, "lora", "bert")
    save_state(tmp_path, trained_state(model), {})
    _, other, _ = attached(make_model, "dora", "bert")
    with pytest.raises(InputError, match="another model or method"):
        load_state(tmp_path, other)


def test_neat_never_forms_the_update_in_training(make_model):
    """No tensor of out x in is saved for backward by the adapter beyond the frozen weight itself."""
    _, model, _ = attached(make_model, "neat", "bert")
    layer = next(module for module in model.modules() if isinstance(module, AdaptedLinear))
    layer.base = nn.Linear(48, 32).double().requires_grad_(False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(3, 48, dtype=torch.float64))
    full_size = {t.data_ptr() for t in saved if t.numel() == 32 * 48}
    assert full_size <= {layer.base.weight.data_ptr()}
