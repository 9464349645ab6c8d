"""Language models by their published shapes, without weights; and the packaged one with them."""

import json

import pytest
import torch

from neat_bench.config import build, compose, names_in
from neat_bench.errors import InputError
from neat_bench.methods.base import attach
from neat_bench.tasks.causal_lm import CausalLM

# parameters the publishers state: Llama 2 and 3 model cards, Qwen3-8B's 8.2B
SIZES = {
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "llama3_2_3b": 3_212_749_824,
    "qwen3_8b": 8_190_735_360,
}
METHODS = names_in("method")
CORE = ("neat", "neat_s", "lora", "dora", "red", "full", "untuned", "bitfit", "linear_probe")


def skeleton(model, method, cache, *overrides):
    config = build(compose([f"model={model}", f"method={method}", "dataset=commonsense/commonsense_170k", *overrides]))
    return config, config.model.skeleton(CausalLM(config.dataset), cache)


@pytest.mark.parametrize("model", SIZES)
def test_the_published_shape_has_the_published_size(model, tmp_path):
    _, built = skeleton(model, "neat", tmp_path)
    assert sum(parameter.numel() for parameter in built.parameters()) == SIZES[model]
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in built.parameters())


@pytest.mark.parametrize(
    ("method", "model"),
    [(method, model) for method in METHODS for model in SIZES if method in CORE or model in ("llama2_7b", "llama3_8b")],
)
def test_every_method_attaches_without_weights(method, model, tmp_path):
    # the core methods on the whole shape, the zoo on its first two layers: a layer is like the next
    whole = method in CORE
    config, built = skeleton(model, method, tmp_path, *([] if whole else ["model.shape.num_hidden_layers=2"]))
    before = dict(built.named_parameters())
    outs = {name: tuple(parameter.shape) for name, parameter in before.items()}
    refused = {
        "bitfit": "has none", "linear_probe": "has none", "hiwi": "has none", "sara": "has none of",
        "inca": "not language models", "meft1": "not llama", "meft2": "not llama", "meft3": "not llama",
        "model_projection": "convolutional", "lorta": None if model == "llama2_7b" else "grouped-query",
    }.get(method)  # fmt: skip
    if refused:
        with pytest.raises(InputError, match=refused):
            attach(config.method, built)
        return
    attach(config.method, built)
    if method == "spt":
        return  # what trains is decided by gradients
    trained = {name: p for name, p in built.named_parameters() if p.requires_grad}
    count = sum(parameter.numel() for parameter in trained.values())
    roles = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "mlp_up": "up_proj", "mlp_down": "down_proj"}
    shapes = [shape for name, shape in outs.items() for role in config.method.targets
              if role in roles and name.endswith(f"{roles[role]}.weight")]  # fmt: skip
    if method in ("lora", "dora"):
        rank = config.method.rank
        assert count == sum(rank * sum(shape) + (method == "dora") * shape[0] for shape in shapes)
    elif method in ("neat", "neat_s"):
        share = len(range(built.config.num_hidden_layers)[4:]) if config.method.layers == "4:" else None
        whole = sum(2 * config.method.rank * shape[0] for shape in shapes)
        assert count == (whole if share is None else whole * share // built.config.num_hidden_layers)
    elif method == "full":
        assert count == SIZES[model]
    elif method == "untuned":
        assert count == 0
    elif method == "powerprop":
        assert count == sum(p.numel() for name, p in before.items() if "_proj" in name and "gate" not in name)
    else:
        assert 0 < count < SIZES[model] / 100


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    config = build(compose(["dataset=packaged/chain_sum"]))
    cache = tmp_path_factory.mktemp("cache")
    return *config.model.load(CausalLM(config.dataset), cache), cache, config


def test_the_packaged_language_model_knows_something(smollm2):
    model, tokenizer, origin, cache, config = smollm2
    assert origin["origin"] == "package"
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    said = tokenizer.decode(model.generate(**inputs, max_new_tokens=3, do_sample=False)[0])
    assert "Paris" in said
    (folder,) = (cache / "models").iterdir()
    assert (folder / "model.safetensors").is_file()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert config.model.locate(cache)[0] == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before, "converted once"
