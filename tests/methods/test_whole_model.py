"""SPT, InCA and MEFT: methods that decide where to train, listen from beside, or rebuild the encoder."""

import pytest
import torch
from cases import Toy, ToyClasses, adapter_parameters, attached, move
from transformers import BertForSequenceClassification

from conftest import logits_of, method_of, tiny_bert_config
from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.experiment import run
from neat_bench.methods.base import attach
from neat_bench.methods.hidden import SideNetwork
from neat_bench.methods.inca import InCANetwork
from neat_bench.methods.lora import LoRAMap
from neat_bench.methods.meft import ReversibleLayers
from neat_bench.methods.sparse import SparseMap
from neat_bench.methods.spt import sensitive_places


def test_the_threshold_takes_as_many_entries_as_the_limit_allows():
    torch.manual_seed(0)
    sensitivity = [torch.rand(30, 20), torch.rand(50) * 1e-6]
    threshold = sensitive_places(sensitivity, sum, 100)
    assert sum(int((each >= threshold).sum()) for each in sensitivity) == 100
    assert sensitive_places(sensitivity, sum, 10_000) > 0  # zeros are never sensitive


@pytest.mark.parametrize("architecture", ["bert", "llama", "timm"])
@pytest.mark.parametrize("parameters", [150, 700, 1300])
def test_spt_meets_its_total_from_below_and_takes_the_most_sensitive(make_model, architecture, parameters):
    method = method_of("method=spt", f"method.parameters={parameters}", "method.rank=1", "method.alpha=20")
    model, inputs = make_model(architecture)
    names = {id(value): name for name, value in model.named_parameters()}
    model.requires_grad_(True)
    Toy().loss(model, inputs).backward()
    squares = {name: value.grad.float().square() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    _, model, _ = attached(lambda *_: (model, inputs), method, architecture)
    trained = adapter_parameters(model)
    total = sum(value.numel() for value in trained.values())
    assert parameters * 0.6 < total <= parameters
    sparse = [module for module in model.modules() if isinstance(module, SparseMap)]
    if parameters == 700:
        assert any(isinstance(module, LoRAMap) for module in model.modules())
        assert sparse
    chosen, left = [], []
    for name, value in trained.items():
        if name.endswith("values") and architecture != "timm":
            place = name.partition(".maps.")[0]
            square = squares[f"{place}.weight"].flatten()
            entries = model.get_submodule(place).maps[name.split(".")[-2]].entries
            chosen.append(square[entries].min())
            mask = torch.ones_like(square, dtype=torch.bool)
            mask[entries] = False
            left.append(square[mask].max())
        elif id(value) in names:
            assert value.ndim == 1
    if chosen:
        assert max(left) < min(chosen)


def test_spt_solves_a_budget_and_says_what_it_met(tiny_overrides):
    record = run(build(compose([*tiny_overrides, "method=spt", "method.batches=2", "budget=1K"])), [])
    met = record["parameters"]["trainable"] - record["parameters"]["head"]
    assert record["budget"]["solved"] == {"parameters": 1000}
    assert record["budget"]["met"] == met
    assert 600 < met <= 1000


def test_inca_sums_losses_whose_gradients_never_meet(make_model):
    method, model, inputs = attached(make_model, "inca", "bert")
    move(model)
    alone = torch.stack(list(answers_of(model, inputs)))
    torch.testing.assert_close(logits_of(model, inputs), alone.mean(0))
    model.train()
    method.loss(ToyClasses(), model, inputs).backward()
    together = {name: value.grad.clone() for name, value in adapter_parameters(model).items()}
    for index in range(3):
        model.zero_grad()
        model.train()
        ToyClasses().loss_of(logits_of(model, inputs)[index], inputs).backward()
        for name, gradient in together.items():
            found = dict(model.named_parameters())[name].grad
            if f"adapters.{index}." in name:
                torch.testing.assert_close(found, gradient)
            else:
                assert found is None or not found.any()
    assert not any(module.training for module in model.bert.encoder.modules())
    assert next(module for module in model.modules() if isinstance(module, SideNetwork)).training


def answers_of(model, inputs):
    network = next(module for module in model.modules() if isinstance(module, InCANetwork))
    for network.answers in (0, 1, 2):
        yield model(**inputs).logits
    network.answers = None


def test_inca_does_not_look_at_padding(make_model):
    _, model, inputs = attached(make_model, "inca", "bert")
    move(model)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    long = model(input_ids=inputs["input_ids"], attention_mask=mask).logits
    short = model(input_ids=inputs["input_ids"][1:, :3], attention_mask=mask[1:, :3]).logits
    torch.testing.assert_close(long[1:], short)


def test_inca_reports_every_adapter_and_with_the_cache_an_epoch_costs_no_backbone_pass(tiny_overrides, tmp_path):
    records = []
    for keep in (False, True):
        overrides = ["method=inca", "method.heads=4", f"trainer.cache_frozen_prefix={keep}", "seed=3",
                     f"paths.results={tmp_path}/{keep}"]  # fmt: skip
        records.append(run(build(compose([*tiny_overrides, *overrides])), []))
    assert [record["cost"]["cached_blocks"] for record in records] == [0, 3]
    assert records[0]["results"] == records[1]["results"]
    told = records[0]["method"]
    assert len(told["adapters"]) == 3
    selected = [each["selection"]["accuracy"] for each in told["adapters"]]
    assert selected[told["best"]] == max(selected)


@pytest.mark.parametrize("form", [1, 2, 3])
def test_meft_gives_autograds_gradients_with_dropout_replayed(form):
    found = {}
    for recompute in (False, True):
        model, inputs = reversible(form, layers=6)
        model.train()
        stack_of(model).recompute = recompute
        torch.manual_seed(5)
        logits_of(model, inputs).square().sum().backward()
        found[recompute] = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert found[True].keys() == found[False].keys()
    for name, gradient in found[False].items():
        difference = found[True][name] - gradient
        assert difference.abs().max() < 1e-4 * gradient.abs().max(), name
        assert difference.mean().abs() < 1e-5 * gradient.abs().max(), name


def reversible(form, layers):
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_bert_config(num_labels=3, vocab_size=40, num_hidden_layers=layers))
    attach(method_of(f"method=meft{form}", "method.bottleneck=6"), model)
    move(model)
    ids = torch.randint(0, 40, (4, 7))
    return model, {"input_ids": ids, "attention_mask": (torch.arange(7) < torch.tensor([[7], [7], [5], [3]])).long()}


def stack_of(model):
    return next(module for module in model.modules() if isinstance(module, ReversibleLayers))


@pytest.mark.parametrize("form", [1, 2, 3])
def test_mefts_memory_of_activations_does_not_grow_with_depth(form):
    kept = {}
    for recompute in (True, False):
        for layers in (2, 6):
            model, inputs = reversible(form, layers)
            stack_of(model).recompute = recompute
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
                model.train()(**inputs)
            kept[recompute, layers] = sum(sizes)
    assert kept[True, 2] == kept[True, 6]
    assert kept[False, 6] > 2 * kept[False, 2]


def test_meft_reports_how_well_its_layers_are_undone(tiny_overrides):
    record = run(build(compose([*tiny_overrides, "method=meft1", "method.bottleneck=4"])), [])
    errors = record["method"]["reconstruction_error"]
    assert len(errors) == 3
    assert max(errors) < 1e-6


def test_meft_leaves_the_layers_below_its_own_as_they_are(make_model):
    plain, inputs = make_model("bert")
    method = method_of("method=meft1", "method.bottleneck=6", "method.layers='2:'")
    _, model, _ = attached(make_model, method, "bert")
    seen = []
    for each in (plain, model):
        each.bert.encoder.layer[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        logits_of(each, inputs)
    assert torch.equal(*seen)
    assert len(model.bert.encoder.layer) == 3


@pytest.mark.parametrize(("overrides", "architecture", "message"), [
    ("spt method.parameters=0", "bert", "at least 1"), ("spt method.targets=[]", "bert", "names the matrices"),
    ("inca method.heads=5", "bert", "does not divide the hidden size 32"),
    ("inca", "llama", "not language models"), ("inca method.targets=[query]", "bert", r"is \[block\]"),
    ("meft1", "timm", "encoders of BERT's form"), ("meft2", "llama", "encoders of BERT's form .* not llama"),
    ("meft1 method.layers=':2'", "bert", "the model's last ones"), ("meft3 method.lam=0", "bert", "above 0"),
    ("meft3 method.lam=1e-6 method.beta=1e-6", "bert", "take the last 2: method.layers='1:'"),
])  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(make_model, overrides, architecture, message):
    model, _ = make_model(architecture)
    name, *more = overrides.split()
    with pytest.raises(InputError, match=message):
        attach(method_of(f"method={name}", *more), model)
