"""Every shipped peft config trains in our contracts."""

import pytest
import torch
import torch.nn.functional as F

from conftest import logits_of
from neat_bench.config import CONFIGS, build, compose
from neat_bench.errors import InputError
from neat_bench.methods.base import attach, merge, unmerge
from neat_bench.methods.state import load_state, save_state, trained_state
from neat_bench.models.roles import head_names

SHIPPED = sorted(path.stem for path in (CONFIGS / "method" / "peft").glob("*.yaml"))


def method_of(name, *more):
    return build(compose([f"method=peft/{name}", *more])).method


def attached(make_model, name, architecture="bert", *more):
    model, inputs = make_model(architecture, torch.float32)
    torch.manual_seed(0)
    attach(method_of(name, *more), model)
    return model, inputs


@pytest.mark.parametrize("name", SHIPPED)
def test_thirty_steps_lower_the_loss_and_the_state_is_whole(make_model, name, tmp_path):
    model, inputs = attached(make_model, name)
    head, labels, losses = head_names(model), torch.tensor([0, 2]), []
    trained = [p for key, p in model.named_parameters() if p.requires_grad and key not in head]
    assert trained
    assert all(p.requires_grad for key, p in model.named_parameters() if key in head)
    optimizer = torch.optim.Adam(trained, lr=2e-2)
    for _ in range(30):
        loss = F.cross_entropy(logits_of(model, inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-4
    merge(model)
    after = logits_of(model, inputs)
    unmerge(model)
    save_state(tmp_path, trained_state(model), {})
    fresh, _ = attached(make_model, name)
    load_state(tmp_path, fresh)
    torch.testing.assert_close(logits_of(fresh, inputs), after, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_one_clear_error(make_model):
    with pytest.raises(InputError, match="did you mean 'BOFTConfig'"):
        attached(make_model, "boft", "bert", "method.config._target_=peft.BOFTConfg")
    with pytest.raises(InputError, match="names a config class of peft"):
        method_of("boft", "method.config._target_=os.system")
    with pytest.raises(InputError, match="unexpected keyword argument 'nosuch'"):
        attached(make_model, "boft", "bert", "+method.config.nosuch=1")
    with pytest.raises(InputError, match="cannot adapt a part of"):
        attached(make_model, "boft", "timm")
    with pytest.raises(InputError, match="need a text model"):
        attached(make_model, "prompt_tuning", "vit")
