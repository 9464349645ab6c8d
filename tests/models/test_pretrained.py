"""Loading pretrained models: what a config may change of them."""

from pathlib import Path

import pytest
from torch import nn

from neat_bench.errors import InputError
from neat_bench.tasks import make_task


@pytest.mark.parametrize(
    ("overrides", "found"), [([], {0.1}), (["model.dropout=0.0"], {0.0}), (["model.dropout=0.3"], {0.3})]
)
def test_dropout_is_the_models_own_or_what_the_config_says(tiny_config, tmp_path, overrides, found):
    config = tiny_config("method=lora", *overrides)
    task = make_task(config.dataset, config.dataset.load(Path(config.paths.data), None, None))
    model, _, _ = config.model.load(task, tmp_path)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == found


def test_a_dropout_that_is_no_probability_is_refused(tiny_config):
    with pytest.raises(InputError, match=r"model\.dropout is at least 0 and below 1, not 1\.5"):
        tiny_config("model.dropout=1.5")
