"""Adapters on bitsandbytes' 8- and 4-bit weights: what they compute, what they keep, what they refuse."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from cases import MAPS, adapter_parameters, learn, method_named, move
from transformers import BertForSequenceClassification

from conftest import logits_of, method_of, tiny_bert_config
from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.experiment import run
from neat_bench.methods.adapted import AdaptedLinear, QuantisedLinear, is_quantised, layers_of, merge, unmerge
from neat_bench.methods.base import attach

bitsandbytes = pytest.importorskip("bitsandbytes")
INPUTS = {"input_ids": torch.tensor([[101, 2204, 102], [101, 2919, 102]]), "attention_mask": torch.ones(2, 3).long()}
REFUSED = {"pissa", "milora", "lora_ga", "deep_lora", "powerprop"}
NAMES = [name for name in MAPS if name.split()[0] not in REFUSED]


class Head:
    auto_class, outputs, reads_text = "AutoModelForSequenceClassification", 2, True


@pytest.fixture(scope="module")
def wide_folder(tiny_folder, tmp_path_factory):
    """The tiny model's tokenizer with a BERT of 64: bitsandbytes' kernels for CPUs take blocks of that size."""
    folder = tmp_path_factory.mktemp("wide_bert")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    config = tiny_bert_config(num_labels=2, hidden_size=64, intermediate_size=128)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make_quantised(wide_folder, tmp_path):
    def make(bits):
        overrides = [f"model.path={wide_folder}", "model.pooling=native", f"model.quantization={bits}"]
        torch.manual_seed(3)
        return build(compose(overrides)).model.load(Head, tmp_path)[0].eval(), INPUTS

    return make


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("name", NAMES)
def test_the_branch_is_the_merged_map_on_the_dequantised_weight(make_quantised, name, bits):
    torch.manual_seed(0)
    model, _ = make_quantised(bits)
    attach(method_named(name), model)
    move(model, 0.02)
    assert not is_quantised(model.classifier)
    for layer, _, adapted, _ in list(layers_of(model))[:3]:
        assert is_quantised(layer.base)
        face = QuantisedLinear(layer.base)
        x = 0.1 * torch.randn(2, 5, face.weight.shape[1])
        adapted(x, face)  # a first use must leave the weight as it is
        expected = F.linear(x, *adapted.merged(face.weight, face.bias))
        # the base's own kernel quantises x as well where it has 8 bits
        assert (adapted(x, face) - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("name", ["neat", "neat depth 4", "lora", "dora", "red", "gift"])
def test_adapters_learn_on_quantised_weights_and_evaluation_leaves_them_alone(make_quantised, name, bits):
    model, inputs = make_quantised(bits)
    before = logits_of(model, inputs)
    method = method_named(name)
    torch.manual_seed(0)
    attach(method, model)
    torch.testing.assert_close(logits_of(model, inputs), before, rtol=0, atol=2e-3)
    packed = {n: p.detach().clone() for n, p in model.named_parameters() if not p.is_floating_point()}
    assert packed
    losses = learn(method, model, inputs)
    assert losses[-1] < losses[0]
    branched = logits_of(model, inputs)
    merge(model)
    assert torch.equal(logits_of(model, inputs), branched)
    unmerge(model)
    assert all(torch.equal(value, dict(model.named_parameters())[n]) for n, value in packed.items())
    assert all(value.dtype == torch.float32 for value in adapter_parameters(model).values())


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("name", ["neat", "lora"])
def test_no_copy_of_a_quantised_weight_is_kept_for_backward(make_quantised, name, bits):
    model, _ = make_quantised(bits)
    attach(method_named(name), model)
    layer = next(module for module in model.modules() if isinstance(module, AdaptedLinear))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(torch.randn(3, 64, requires_grad=True))
    assert not [t for t in kept if t.is_floating_point() and t.numel() >= 64 * 64]
    y.sum().backward()
    assert all(value.grad is not None for value in layer.maps.parameters())


@pytest.mark.parametrize("name", ["pissa", "milora", "full"])
def test_methods_that_change_the_weights_refuse_quantised_ones(make_quantised, name):
    model, _ = make_quantised("8bit")
    with pytest.raises(InputError, match="quantised"):
        attach(method_of(f"method={name}"), model)


def test_a_method_that_needs_gradients_of_the_weights_says_so(make_quantised):
    model, inputs = make_quantised("4bit")
    method = method_of("method=lora_ga", "method.rank=4")
    attach(method, model)
    with pytest.raises(InputError, match="needs them unquantised"):
        method.prepare(model, [inputs], lambda batch: logits_of(model, batch).sum())


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_whole_run_on_quantised_weights(tiny_overrides, wide_folder, bits):
    tiny_overrides += [f"model.path={wide_folder}"]
    more = ["model.pooling=native", f"model.quantization={bits}", "method=neat", "trainer.epochs=1"]
    record = run(build(compose([*tiny_overrides, *more])), [])
    plain = run(build(compose([*tiny_overrides, "model.pooling=native", "method=neat", "trainer.epochs=1"])), [])
    assert record["config"]["model"]["quantization"] == bits
    assert record["parameters"] == plain["parameters"]


def test_an_unknown_quantization_is_named():
    with pytest.raises(InputError, match=r"unknown model\.quantization '3bit'"):
        build(compose(["model.quantization=3bit"]))
