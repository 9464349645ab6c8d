"""What the bridge to peft refuses; test_contract.py trains every config that is shipped."""

import pytest
from cases import attached

from conftest import method_of
from neat_bench.errors import InputError


def on(make_model, name, architecture, *more):
    return attached(make_model, method_of(f"method=peft/{name}", *more), architecture)


def test_what_does_not_fit_is_one_clear_error(make_model):
    with pytest.raises(InputError, match="did you mean 'BOFTConfig'"):
        on(make_model, "boft", "bert", "method.config._target_=peft.BOFTConfg")
    with pytest.raises(InputError, match="names a config class of peft"):
        method_of("method=peft/boft", "method.config._target_=os.system")
    with pytest.raises(InputError, match="unexpected keyword argument 'nosuch'"):
        on(make_model, "boft", "bert", "+method.config.nosuch=1")
    with pytest.raises(InputError, match="cannot adapt a part of"):
        on(make_model, "boft", "timm")
    with pytest.raises(InputError, match="need a text model"):
        on(make_model, "prompt_tuning", "vit")
