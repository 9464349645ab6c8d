"""The fused low-rank product, and values that are computed once in an optimizer step."""

import pytest
import torch
from torch import nn

from conftest import logits_of, method_of
from neat_bench.methods.adapted import AdaptedMap, LinearRows, adapted_maps
from neat_bench.methods.base import attach
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.methods.neat import NEATMap
from neat_bench.training.trainer import compile_model


def parts(bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    linear = nn.Linear(5, 7, bias=bias, dtype=dtype).requires_grad_(False)
    x, A, B = (torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((2, 3, 5), (2, 5), (7, 2)))
    return x, linear, A, B


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [None, (2, 6)])
def test_the_fused_gradients_are_the_numerical_ones(bias, rows):
    x, linear, A, B = parts(bias)
    layer = linear if rows is None else LinearRows(linear, rows)
    B = B if rows is None else B[2:6].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, A, B: low_rank_linear(x, layer, A, B, 0.7), (x, A, B))
    no_bias = low_rank_linear(x, layer, A, B, 0.7, bias=False)
    torch.testing.assert_close(no_bias, x @ layer.weight.t() + 0.7 * (x @ A.t()) @ B.t())


def test_the_separate_way_is_the_same_map():
    x, linear, A, B = parts()
    dropout = nn.Dropout(0.5).train()
    torch.manual_seed(1)
    dropped = dropout(x.reshape(-1, 5))
    torch.manual_seed(1)
    found = low_rank_linear(x, linear, A, B, 0.7, dropout)
    torch.testing.assert_close(found.view(-1, 7), linear(x).view(-1, 7) + 0.7 * dropped @ A.t() @ B.t())
    torch.testing.assert_close(
        low_rank_linear(x, linear, A, B, 0.7, dropout.eval()), linear(x) + 0.7 * x @ A.t() @ B.t()
    )


@pytest.mark.parametrize("autocast", [True, False])
def test_a_low_precision_weight_is_used_as_it_is(autocast):
    """bf16 base weights with float32 adapters: bf16 outputs, float32 gradients, close to the exact ones."""
    x, linear, A, B = parts(dtype=torch.float32)
    exact = low_rank_linear(x, linear, A, B, 0.7)
    exact.square().sum().backward()
    wanted, A.grad, B.grad = (A.grad, B.grad), None, None
    low = nn.Linear(5, 7, dtype=torch.bfloat16).requires_grad_(False)
    low.load_state_dict(linear.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = low_rank_linear(x.detach() if autocast else x.detach().bfloat16(), low, A, B, 0.7)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)
    for parameter, gradient in zip((A, B), wanted, strict=True):
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, gradient, rtol=0.1, atol=0.5)


def test_neat_on_bf16_weights_makes_no_float32_copy_of_them():
    weight = torch.randn(512, 768).bfloat16()
    torch.manual_seed(0)
    adapted = NEATMap(weight, 4, 4, 1.0, "relu", 0.0)
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            if torch.is_tensor(result) and result.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
                largest.append(result.numel())
            return result

    with Sizes():
        z = adapted.of_weight(weight)
        z.sum().backward()
    assert z.dtype == torch.float32
    assert max(largest) <= 4 * 768


@pytest.mark.parametrize("method", ["neat", "dora", "lora"])
@pytest.mark.parametrize("count", [1, 3])
def test_an_optimizer_step_has_the_plain_gradients_and_computes_each_z_once(make_model, monkeypatch, method, count):
    model, inputs = make_model("bert")
    overrides = [f"method={method}", "method.rank=4", *(["method.depth=4"] if method == "neat" else [])]
    attach(method_of(*overrides), model)
    model.double()
    generator = torch.Generator().manual_seed(1)
    maps = adapted_maps(model, AdaptedMap)
    with torch.no_grad():
        for parameter in (parameter for adapted in maps for parameter in adapted.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    calls = []
    if method != "lora":
        for adapted in maps:
            plain = adapted.of_weight
            monkeypatch.setattr(adapted, "of_weight", lambda weight, plain=plain: calls.append(1) or plain(weight))

    def gradients(begin):
        model.zero_grad()
        calls.clear()
        for index in range(count):
            for adapted in maps if begin else []:
                adapted.begin(index, count)
            logits_of(model, inputs | {"input_ids": inputs["input_ids"] + index}).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    plain = gradients(begin=False)
    for _ in range(2):  # the second step starts afresh
        once = gradients(begin=True)
        assert len(calls) == (0 if method == "lora" else len(maps))
        for name, gradient in plain.items():
            torch.testing.assert_close(once[name], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["neat", "lora", "dora", "red"])
def test_adapted_layers_compile_without_a_graph_break(make_model, method):
    """On the compiler's own front end: whole-graph capture of forward and backward, the same numbers."""
    model, _ = make_model("vit", torch.float32)
    attach(method_of(f"method={method}", "method.targets=[query,mlp_down]"), model)
    block = next(module for name, module in model.named_modules() if name.endswith("layers.0"))
    x = torch.randn(2, 4, 32)
    block(x).sum().backward()
    plain = {name: parameter.grad.clone() for name, parameter in block.named_parameters() if parameter.requires_grad}
    before = block(x)
    block.zero_grad()
    compile_model(block, fullgraph=True, backend="aot_eager")
    after = block(x)
    torch.testing.assert_close(after, before)
    after.sum().backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(dict(block.named_parameters())[name].grad, gradient)
