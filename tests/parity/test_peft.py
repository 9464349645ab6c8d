"""Ours against Hugging Face peft: outputs, gradients of every adapter parameter, counts, starts and schedules.

The same copies are what scripts/export_adapter.py writes: methods/peft_format.py makes them.
"""

import peft
import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator
from peft.tuners.lora.loraga import preprocess_loraga

from conftest import logits_of, method_of
from neat_bench.methods.adapted import adapted_maps, layers_of
from neat_bench.methods.base import attach
from neat_bench.methods.peft_format import FORMS, _inside, _maps, start_of, to_peft
from neat_bench.models.roles import head_names

NEATS = [f"neat rank=4 depth={depth} activation={activation} scale=0.7" for depth in (2, 4, 6)
         for activation in ("relu", "gelu", "tanh", "sigmoid", "leaky_relu", "identity")]  # fmt: skip
OURS = [
    *NEATS,
    "lora rank=4 alpha=6",
    "lora rank=4 alpha=6 rank_stabilised=true",
    "dora rank=4 alpha=6 targets=[query,value,mlp_up]",
    "adalora rank=4 target_rank=2 alpha=6",
    "vera rank=16 targets=[query,mlp_up]",
    "fourierft count=40 zero_start=false scale=15",
    "ia3",
]
TAKEN_FROM_THE_BASE = ["pissa rank=4 alpha=6", "milora rank=4 alpha=6", "lora_ga rank=4 alpha=6"]


def moved(make_model, words):
    """Return the method, a model whose adapters are away from their start, that start, and inputs."""
    name, *fields = words.split()
    method = method_of(f"method={name}", *(f"method.{each}" for each in fields))
    model, inputs = make_model("bert")
    torch.manual_seed(0)
    attach(method, model)
    model.double()
    if method.prepare_batches:
        method.prepare(model, [inputs], lambda batch: logits_of(model, batch).square().mean())
    start = start_of(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return method, model, start, inputs


@pytest.mark.parametrize("words", OURS)
def test_outputs_gradients_and_counts_are_pefts(make_model, words):
    method, ours, _, inputs = moved(make_model, words)
    theirs = to_peft(method, ours, {}, make_model("bert")[0], ["classifier"]).double()
    # peft divides AdaLoRA's alpha by rank + 1e-5
    near = {"rtol": 1e-4, "atol": 1e-5} if "adalora" in words else {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(logits_of(ours, inputs), logits_of(theirs, inputs), **near)
    for model in (ours, theirs):
        logits_of(model, inputs).square().sum().backward()
    form, count = FORMS[type(method)], 0
    for path, _, adapted in _maps(ours):
        layer = theirs.base_model.model.get_submodule(path)
        gradients = [parameter.grad for parameter in adapted.parameters() if parameter.requires_grad]
        yours = [_inside(layer, name) for name in form.tensors(adapted, {})]
        trained = [each.grad for each in yours if each.requires_grad]
        count += sum(gradient.numel() for gradient in gradients)
        for mine in gradients:
            assert mine.abs().max() > 0
            same = [each for each in trained if each.numel() == mine.numel()
                    and torch.allclose(each.flatten(), mine.flatten(), **near)]  # fmt: skip
            assert same, (path, mine.shape)
        assert len(gradients) == len(trained)
    head = sum(ours.get_parameter(name).numel() for name in head_names(ours))
    # peft also counts, and never moves, the number of ranks of each AdaLoRA layer
    trained = [value for name, value in theirs.named_parameters() if value.requires_grad and "ranknum" not in name]
    assert sum(value.numel() for value in trained) == count + head


@pytest.mark.parametrize("words", [*OURS, *TAKEN_FROM_THE_BASE])
def test_what_is_exported_is_loaded_by_peft_with_the_same_logits(make_model, words, tmp_path):
    method, ours, start, inputs = moved(make_model, words)
    to_peft(method, ours, start, make_model("bert")[0], ["classifier"]).save_pretrained(tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    loaded = peft.PeftModel.from_pretrained(make_model("bert")[0], tmp_path).double().eval()
    torch.testing.assert_close(logits_of(loaded, inputs), logits_of(ours, inputs), rtol=1e-4, atol=1e-5)


def test_pissa_starts_where_pefts_does(make_model):
    method = method_of("method=pissa", "method.rank=4", "method.alpha=6")
    ours, _ = make_model("bert", torch.float32)
    attach(method, ours)
    config = peft.LoraConfig(r=4, lora_alpha=method.alpha, init_lora_weights="pissa", target_modules=["query", "value"])
    theirs = peft.get_peft_model(make_model("bert", torch.float32)[0], config)
    for path, _, adapted in _maps(ours):
        layer = theirs.base_model.model.get_submodule(path)
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # the triples' signs are free
        torch.testing.assert_close(adapted.B @ adapted.A, product, rtol=1e-3, atol=1e-5)
    for (_, _, _, base), path in zip(layers_of(ours), [path for path, *_ in _maps(ours)], strict=True):
        torch.testing.assert_close(base, theirs.base_model.model.get_submodule(path).weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr"])
def test_lora_ga_points_where_pefts_does(make_model, direction):
    """peft also multiplies B by the singular values and leaves A unscaled; directions are what the two share."""
    method = method_of("method=lora_ga", "method.rank=4", f"method.direction={direction}")
    ours, _ = make_model("bert", torch.float32)
    inputs = {"input_ids": torch.randint(0, 40, (16, 12))}  # enough tokens for a gradient of rank 8
    attach(method, ours)

    def loss(model):
        return logits_of(model, inputs).square().mean()

    ours.eval()
    method.prepare(ours, [inputs], lambda batch: loss(ours))
    config = peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights="lora_ga", target_modules=["query", "value"],
                             lora_ga_config=peft.LoraGAConfig(direction=direction))  # fmt: skip
    base, _ = make_model("bert", torch.float32)

    def step():
        loss(base.eval()).backward()

    preprocess_loraga(base, config, step)
    theirs = peft.get_peft_model(base, config)
    for path, _, adapted in _maps(ours):
        layer = theirs.base_model.model.get_submodule(path)
        for mine, yours in (
            (adapted.A.t(), layer.lora_A["default"].weight.t()),
            (adapted.B, layer.lora_B["default"].weight),
        ):
            cosines = torch.nn.functional.cosine_similarity(mine, yours, dim=0).abs()
            torch.testing.assert_close(cosines, torch.ones(4), rtol=0, atol=1e-2)


def test_adalora_allocates_ranks_step_by_step_as_peft_does(make_model):
    total = 40
    method = method_of("method=adalora", "method.rank=6", "method.target_rank=2", "method.alpha=6",
                       "method.interval=3", "method.warmup=0.2", "method.final=0.3")  # fmt: skip
    ours, _ = make_model("bert")
    torch.manual_seed(0)
    attach(method, ours)
    ours.double()
    with torch.no_grad():
        for adapted in adapted_maps(ours, type(next(iter(layers_of(ours)))[2])):
            adapted.e.normal_()
    theirs = to_peft(method, ours, {}, make_model("bert")[0], ["classifier"]).double()
    config = theirs.peft_config["default"]
    config.tinit, config.tfinal, config.deltaT, config.total_step = 8, 12, 3, total
    allocator = RankAllocator(theirs.base_model.model, config, "default")
    generator = torch.Generator().manual_seed(3)
    dropped = set()
    for step in range(1, total - 12 + 1):
        for path, _, adapted in _maps(ours):
            layer = theirs.base_model.model.get_submodule(path)
            for mine, yours in ((adapted.P, layer.lora_B), (adapted.e, layer.lora_E), (adapted.Q, layer.lora_A)):
                mine.grad = torch.randn(mine.shape, generator=generator, dtype=torch.float64)
                yours["default"].grad = mine.grad.view(yours["default"].shape).clone()
        method.on_step(ours, step, total)
        allocator.update_and_allocate(theirs.base_model.model, step, force_mask=step == total - 12)
        for path, _, adapted in _maps(ours):
            theirs_e = theirs.base_model.model.get_submodule(path).lora_E["default"].flatten()
            assert torch.equal(adapted.e == 0, theirs_e == 0), step
        dropped.add(int(sum((adapted.e == 0).sum() for *_, adapted in _maps(ours))))
    assert max(dropped) == 6 * (6 - 2)
    assert len(dropped) > 4
    with torch.no_grad():  # what the optimizer does to a dropped triple is undone
        for *_, adapted in _maps(ours):
            adapted.e += 1.0
    method.on_step(ours, total, total)
    assert sum(int((adapted.e == 0).sum()) for *_, adapted in _maps(ours)) == 6 * (6 - 2)


def test_ether_of_one_block_is_hra_of_rank_one(make_model):
    method = method_of("method=ether", "method.blocks=1", "method.targets=[query,mlp_up]")
    ours, inputs = make_model("bert")
    torch.manual_seed(0)
    attach(method, ours)
    ours.double()
    config = peft.HRAConfig(r=1, apply_GS=False, target_modules=["query", "intermediate.dense"])
    theirs = peft.get_peft_model(make_model("bert")[0], config).double().eval()
    for path, _, adapted in _maps(ours):
        with torch.no_grad():
            theirs.base_model.model.get_submodule(path).hra_u["default"].copy_(adapted.input.u.t())
    torch.testing.assert_close(logits_of(ours, inputs), logits_of(theirs, inputs), rtol=1e-9, atol=1e-9)
    for model in (ours, theirs):
        logits_of(model, inputs).square().sum().backward()
    for path, _, adapted in _maps(ours):
        yours = theirs.base_model.model.get_submodule(path).hra_u["default"].grad
        torch.testing.assert_close(adapted.input.u.grad, yours.t(), rtol=1e-7, atol=1e-9)


def test_norm_tuning_trains_what_pefts_does(make_model):
    ours, _ = make_model("bert")
    attach(method_of("method=ln_tuning"), ours)
    theirs = peft.get_peft_model(make_model("bert")[0], peft.LNTuningConfig(target_modules=["LayerNorm"]))
    trained = {name for name, value in ours.named_parameters() if value.requires_grad} - head_names(ours)
    found = {name.replace("base_model.model.", "").replace(".ln_tuning_layers.default", "")
             for name, value in theirs.named_parameters() if value.requires_grad}  # fmt: skip
    assert trained == found
