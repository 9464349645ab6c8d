"""Edits of hidden states and of convolutions: what no weight can absorb, or no linear layer."""

import pytest
import timm
import torch
import torch.nn.functional as F
from cases import attached, move
from torch import nn

from conftest import logits_of, method_of
from neat_bench.errors import InputError
from neat_bench.methods.base import attach
from neat_bench.methods.hidden import HiddenEdit
from neat_bench.methods.sibo import SIBOMap
from neat_bench.methods.state import load_state, save_state, trained_state
from neat_bench.models.roles import head_names


def test_reft_edits_the_tokens_it_says_and_its_rows_stay_orthonormal(make_model):
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    hidden = torch.randn(2, 5, 32, dtype=torch.float64)
    chosen = {"first": [[1, 1, 0, 0, 0]] * 2, "last": [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]], "all": [[1] * 5] * 2}
    for positions, wanted in chosen.items():
        model, inputs = make_model("bert")
        overrides = ["method=loreft", f"method.positions={positions}", "method.count=2"]
        attach(method_of(*overrides), model)
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
    attach(method_of("method=loreft", "method.positions=last"), model)
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
    attach(method_of("method=model_projection"), model)
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
    attach(method_of("method=model_projection"), fresh)
    load_state(tmp_path, method_of("method=model_projection"), fresh)
    assert torch.equal(fresh.conv_stem.parametrizations.weight[0].gates, gated[0].gates)


@pytest.mark.parametrize(("overrides", "message"), [
    ("method=model_projection", "is for convolutional networks"),
    ("method=sibo method.targets=[mlp_down]", "cannot take"),
    ("method=loreft method.rank=33", "hidden size 32"),
])  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(make_model, overrides, message):
    model, _ = make_model("bert")
    with pytest.raises(InputError, match=message):
        attach(method_of(*overrides.split()), model)
