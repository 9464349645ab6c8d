"""Loading pretrained models: what a config may change of them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.tasks import make_task


def load(config, cache):
    """Return the model of a config with its task's head."""
    task = make_task(config.dataset, config.dataset.load(Path(config.paths.data), None, None))
    return config.model.load(task, cache)[0]


@pytest.mark.parametrize(
    ("overrides", "found"), [([], {0.1}), (["model.dropout=0.0"], {0.0}), (["model.dropout=0.3"], {0.3})]
)
def test_dropout_is_the_models_own_or_what_the_config_says(tiny_config, tmp_path, overrides, found):
    model = load(tiny_config("method=lora", *overrides), tmp_path)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == found


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.dropout=1.5", r"model\.dropout is at least 0 and below 1, not 1\.5"),
        ("model.attn_implementation=spda", r"unknown model\.attn_implementation 'spda'.*sdpa"),
        ("model.dtype=fp32", r"unknown model\.dtype 'fp32'"),
    ],
)
def test_a_value_that_no_model_takes_is_refused(tiny_config, override, told):
    with pytest.raises(InputError, match=told):
        tiny_config(override)
    with pytest.raises(InputError, match=told):
        build(compose(["model=dinov2_s", "dataset=packaged/digits", override]))  # a converted model


def test_the_attention_is_computed_as_the_config_says(tiny_config, tmp_path):
    def logits(*overrides):
        torch.manual_seed(0)
        model = load(tiny_config("method=lora", *overrides), tmp_path)
        ids = torch.arange(10).view(2, 5)
        with torch.no_grad():
            return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)), model.config._attn_implementation

    (ours, found), (published, chosen) = logits("model.attn_implementation=eager"), logits()
    assert (found, chosen) == ("eager", "sdpa")
    torch.testing.assert_close(ours.logits, published.logits)


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_an_attention_whose_package_is_missing_is_named(tiny_config, tmp_path):
    config = tiny_config("method=lora", "model.attn_implementation=flash_attention_2")
    with pytest.raises(InputError, match=r"attn_implementation=flash_attention_2 cannot be used here: the package for"):
        load(config, tmp_path)
