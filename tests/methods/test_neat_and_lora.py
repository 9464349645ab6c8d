"""What NEAT and its nearest relatives do beyond the contract, and how they refuse what does not fit."""

import pytest
import torch
from cases import attached, move
from torch import nn

from conftest import logits_of, method_of
from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedLinear, AdaptedMap
from neat_bench.methods.base import attach
from neat_bench.methods.state import load_state, save_state, trained_state


@pytest.mark.parametrize("name", ["neat", "lora", "dora"])
def test_a_rank_that_does_not_fit_is_an_error_that_says_what_fits(make_model, name):
    model, _ = make_model("bert")
    method = method_of(f"method={name}", "method.rank=33")
    with pytest.raises(InputError, match=r"rank=33 is larger than the matrix at bert\.encoder\.layer\.0.*at most 32"):
        attach(method, model)


def test_a_role_that_the_model_lacks_is_an_error_that_lists_what_is_there(make_model):
    model, _ = make_model("bert")
    method = method_of("method=neat", "method.targets=[mlp_gate]")
    with pytest.raises(InputError, match="no 'mlp_gate'; it has query, key, value, output, mlp_up, mlp_down, block"):
        attach(method, model)


def test_dropout_acts_in_training_only(make_model):
    model, inputs = make_model("bert")
    attach(method_of("method=neat", "method.dropout=0.5", "method.rank=4"), model)
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
    method, other, _ = attached(make_model, "dora", "bert")
    with pytest.raises(InputError, match="another model or method"):
        load_state(tmp_path, method, other)


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
