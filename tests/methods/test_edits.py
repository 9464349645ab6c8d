"""Edits of hidden states and of convolutions: what no weight can absorb, or no linear layer."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from conftest import logits_of
from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.methods.base import HiddenEdit, attach, merge, unmerge
from neat_bench.methods.sibo import SIBOMap
from neat_bench.methods.state import load_state, save_state, trained_state
from neat_bench.models.roles import head_names

ARCHITECTURES = ("bert", "roberta", "vit", "dinov2", "llama", "timm")
# name -> (overrides, parameters of one place of width 32)
EDITS = {
    "houlsby": ("method.bottleneck=6", 6 * (2 * 32 * 6 + 32 + 6)),
    "pfeiffer": ("method.bottleneck=6", 3 * (2 * 32 * 6 + 32 + 6)),
    "parallel": ("method.bottleneck=6", 3 * (2 * 32 * 6 + 32 + 6)),
    "loretta_adp": ("method.bottleneck=8", None),
    "loreft": ("", 3 * (2 * 4 * 32 + 4)),
    "loreft first": ("method.positions=first method.count=2 method.rank=1", 3 * (2 * 32 + 1)),
    "direft": ("method.positions=last", 3 * (2 * 4 * 32 + 4)),
    "sibo": ("method.rank=4", 6 * 4 * 64),
}


def attached(make_model, name, architecture):
    model, inputs = make_model(architecture)
    torch.manual_seed(0)
    method = build(compose([f"method={name.split()[0]}", *EDITS[name][0].split()])).method
    attach(method, model)
    return method, model.double(), inputs


def move(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", EDITS)
def test_step_zero_merging_and_gradients(make_model, name, architecture):
    plain, inputs = make_model(architecture)
    before = logits_of(plain, inputs)
    method, model, _ = attached(make_model, name, architecture)
    assert torch.allclose(logits_of(model, inputs), before, rtol=0, atol=1e-10) == method.starts_at_pretrained
    move(model)
    edited = logits_of(model, inputs)
    assert not torch.allclose(edited, before)
    merge(model)  # the edits stay beside the weights
    assert torch.equal(logits_of(model, inputs), edited)
    unmerge(model)
    edited.square().sum().backward()
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    unused = {key for key in trained if "mask_token" in key}
    assert {key for key, value in model.named_parameters() if value.grad is not None} == trained - unused


@pytest.mark.parametrize("architecture", ["bert", "timm"])
@pytest.mark.parametrize("name", EDITS)
def test_saved_and_loaded_state_gives_the_same_logits(make_model, name, architecture, tmp_path):
    _, model, inputs = attached(make_model, name, architecture)
    move(model)
    save_state(tmp_path, trained_state(model), {})
    torch.manual_seed(7)
    _, fresh, _ = attached(make_model, name, architecture)
    load_state(tmp_path, fresh)
    torch.testing.assert_close(logits_of(fresh, inputs), logits_of(model, inputs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in EDITS if EDITS[name][1]])
def test_parameters_are_counted_by_the_docstrings_formula(make_model, name):
    _, model, _ = attached(make_model, name, "bert")
    head = head_names(model)
    trained = [value.numel() for key, value in model.named_parameters() if value.requires_grad and key not in head]
    assert sum(trained) == EDITS[name][1]


@pytest.mark.parametrize("name", EDITS)
def test_thirty_steps_lower_the_loss(make_model, name):
    _, model, inputs = attached(make_model, name, "bert")
    head, labels, losses = head_names(model), torch.tensor([0, 2]), []
    trained = [p for key, p in model.named_parameters() if p.requires_grad and key not in head]
    optimizer = torch.optim.Adam(trained, lr=2e-2)
    for _ in range(30):
        loss = F.cross_entropy(logits_of(model, inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 2e-4


def test_reft_edits_the_tokens_it_says_and_its_rows_stay_orthonormal(make_model):
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    hidden = torch.randn(2, 5, 32, dtype=torch.float64)
    chosen = {"first": [[1, 1, 0, 0, 0]] * 2, "last": [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]], "all": [[1] * 5] * 2}
    for positions, wanted in chosen.items():
        model, inputs = make_model("bert")
        overrides = ["method=loreft", f"method.positions={positions}", "method.count=2"]
        attach(build(compose(overrides)).method, model)
        model.double()
        move(model)
        edit = next(module for module in model.modules() if isinstance(module, HiddenEdit))
        logits_of(model, inputs | {"attention_mask": mask})
        changed = (edit(hidden) != hidden).any(-1).int().tolist()
        assert changed == wanted
        R = edit.rows()
        torch.testing.assert_close(R @ R.t(), torch.eye(4, dtype=torch.float64))
        if positions == "all":
            expected = hidden + (hidden @ edit.W.weight.t() + edit.W.bias - hidden @ R.t()) @ R
            torch.testing.assert_close(edit(hidden), expected)


def test_reft_leaves_generated_tokens_alone_unless_it_edits_all(make_model):
    model, _ = make_model("llama")
    attach(build(compose(["method=loreft", "method.positions=last"])).method, model)
    model.double()
    move(model)
    ids = torch.tensor([[2, 5, 7, 9, 3], [2, 4, 6, 3, 1]])
    whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert whole.shape == (2, 9)


def test_sibo_mixes_in_the_embedding(make_model):
    _, model, inputs = attached(make_model, "sibo", "bert")
    move(model)
    adapted = next(module for module in model.modules() if isinstance(module, SIBOMap))
    logits_of(model, inputs)
    embedded = model.bert.embeddings(inputs["input_ids"])
    linear = nn.Linear(32, 32).double()
    x = torch.randn_like(embedded)
    mixed = 0.8 * x + 0.2 * embedded
    torch.testing.assert_close(adapted(x, linear), linear(x) + adapted.scale * mixed @ adapted.A.t() @ adapted.B.t())


def test_the_parallel_adapter_reads_the_feed_forwards_input(make_model):
    _, model, inputs = attached(make_model, "parallel", "bert")
    move(model)
    seen = {}
    block = model.bert.encoder.layer[1]
    block.intermediate.dense.register_forward_hook(lambda _, a, __: seen.update(x=a[0]))
    block.output.dense.register_forward_hook(lambda _, a, y: seen.update(h=a[0], y=y))
    logits_of(model, inputs)
    edit = block.output.dense.hidden_edit
    torch.testing.assert_close(seen["y"], F.linear(seen["h"], block.output.dense.weight, block.output.dense.bias)
                               + 4 * edit.update(seen["x"]))  # fmt: skip


def test_model_projection_gates_every_filter_of_a_convolutional_network(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    filters = {name: module.weight.shape for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    attach(build(compose(["method=model_projection"])).method, model)
    torch.testing.assert_close(model(x), before)
    head = head_names(model)
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad and key not in head}
    assert sum(value.numel() for value in trained.values()) == sum(shape[0] * shape[1] for shape in filters.values())
    model(x).square().sum().backward()
    assert all(value.grad is not None for value in trained.values())
    move(model)
    gated = model.conv_stem.parametrizations.weight
    wanted = gated.original * gated[0].gates[:, :, None, None]
    torch.testing.assert_close(model.conv_stem.weight, wanted)
    save_state(tmp_path, trained_state(model), {})
    fresh = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    attach(build(compose(["method=model_projection"])).method, fresh)
    load_state(tmp_path, fresh)
    assert torch.equal(fresh.conv_stem.parametrizations.weight[0].gates, gated[0].gates)


@pytest.mark.parametrize(("overrides", "message"), [
    ("method=model_projection", "is for convolutional networks"),
    ("method=sibo method.targets=[mlp_down]", "cannot take"),
    ("method=loreft method.rank=33", "hidden size 32"),
])  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(make_model, overrides, message):
    model, _ = make_model("bert")
    with pytest.raises(InputError, match=message):
        attach(build(compose(overrides.split())).method, model)
