"""What single methods of the zoo claim beyond the contract."""

import pytest
import torch
from cases import Toy, attached, method_named, move
from torch import nn

from conftest import method_of
from neat_bench.errors import InputError
from neat_bench.methods.adapted import layers_of
from neat_bench.methods.base import attach
from neat_bench.methods.state import trained_tensors
from neat_bench.methods.tensor_train import TensorTrain, factors_of


def loss_of(model, inputs):
    return Toy().loss(model, inputs)


def test_ether_reflects():
    """H is orthogonal with determinant -1 a block, at distance 2 sqrt n from I, and never mixes blocks."""
    from neat_bench.methods.ether import Reflection

    torch.manual_seed(0)
    for blocks in (1, 4):
        H = Reflection(12, blocks, plus=False).double()(torch.eye(12, dtype=torch.float64))
        torch.testing.assert_close(H @ H.t(), torch.eye(12, dtype=torch.float64))
        assert torch.linalg.norm(H - torch.eye(12)).item() == pytest.approx(2 * blocks**0.5, rel=1e-6)
        for start in range(0, 12, 12 // blocks):
            part = slice(start, start + 12 // blocks)
            assert torch.linalg.det(H[part, part]).item() == pytest.approx(-1, rel=1e-6)
        assert torch.count_nonzero(H - torch.block_diag(*(H[s : s + 12 // blocks, s : s + 12 // blocks]
                                                          for s in range(0, 12, 12 // blocks)))) == 0  # fmt: skip


def test_melora_is_lora_of_rank_n_r_with_block_diagonal_factors(make_model):
    from neat_bench.methods.melora import MELoRAMap

    torch.manual_seed(0)
    linear = nn.Linear(12, 8).double().requires_grad_(False)
    adapted = MELoRAMap(linear.weight, 2, 4, 0.5, 0.0).double()
    move(adapted)
    A, B = torch.block_diag(*adapted.A), torch.block_diag(*adapted.B)
    assert A.shape == (8, 12)
    x = torch.randn(3, 12, dtype=torch.float64)
    torch.testing.assert_close(adapted(x, linear), linear(x) + 0.5 * x @ A.t() @ B.t())


def test_milora_keeps_the_top_singular_space_and_pissa_takes_it(make_model):
    model, _ = make_model("bert")
    weight = model.bert.encoder.layer[0].attention.self.query.weight.detach().clone()
    U, S, Vt = torch.linalg.svd(weight)
    for name, kept in (("milora", slice(0, 28)), ("pissa", slice(4, None))):
        changed, _ = make_model("bert")
        attach(method_named(name), changed)
        _, _, adapted, base = next(iter(layers_of(changed)))
        torch.testing.assert_close(base, (U[:, kept] * S[kept]) @ Vt[kept], rtol=0, atol=1e-6)
        whole, _ = adapted.double().merged(base, None)
        torch.testing.assert_close(whole, weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr"])
def test_lora_ga_starts_along_the_gradient_in_either_direction(make_model, direction):
    model, inputs = make_model("bert")
    torch.manual_seed(0)
    method = method_of("method=lora_ga", "method.rank=4", f"method.direction={direction}")
    attach(method, model)
    model.double()
    layer, _, adapted, _ = next(iter(layers_of(model)))
    layer.base.weight.requires_grad_(True)
    loss_of(model, inputs).backward()
    U, _, Vt = torch.linalg.svd(layer.base.weight.grad)
    layer.base.weight.requires_grad_(False)
    model.zero_grad()
    layer.base.weight.grad = None
    method.prepare(model, [inputs, inputs], lambda batch: loss_of(model, batch))
    assert all(parameter.grad is None for parameter in model.parameters())
    of_a, of_b = (slice(4), slice(4, 8)) if direction == "ArB2r" else (slice(4, 8), slice(4))
    stable = 32**0.25 / 4 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close((adapted.A @ Vt[of_a].t()).abs(), stable, rtol=0, atol=1e-3)
    torch.testing.assert_close((U[:, of_b].t() @ adapted.B).abs(), stable, rtol=0, atol=1e-3)


def test_shared_factors_are_one_tensor_saved_once(make_model):
    for name, shared in (("vera", ("A", "B")), ("gift", ("P", "Q")), ("lorta", ("A", "B", "heads"))):
        _, model, _ = attached(make_model, name, "bert")
        maps = [adapted for _, role, adapted, _ in layers_of(model) if role == "query"]
        for attribute in shared:
            assert len({id(getattr(adapted, attribute)) for adapted in maps}) == 1
        kept = [key for key in trained_tensors(model) if key.rpartition(".")[2] in shared and ".query." in key]
        assert len(kept) == (0 if name == "vera" else len(shared))


@pytest.mark.parametrize(("overrides", "architecture", "message"), [
    ("lorta", "llama", "grouped-query attention does not fit"), ("hiwi", "llama", "has none: try method.form=weight"),
    ("melora method.minis=5", "bert", "does not divide"), ("ether method.blocks=5", "bert", "does not divide"),
    ("fourierft method.count=5000", "bert", "exceeds the 1024 entries"), ("pissa method.rank=40", "bert", "at most 32"),
    ("lora_ga method.rank=20", "bert", "rank=40 is larger"), ("gift method.rank=40", "bert", "at most 32"),
])  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(make_model, overrides, architecture, message):
    model, _ = make_model(architecture)
    with pytest.raises(InputError, match=message):
        attach(method_of(f"method={overrides.split()[0]}", *overrides.split()[1:]), model)


def test_tensor_trains_have_the_matrix_of_their_cores():
    assert [factors_of(size, 3) for size in (768, 384, 7, 1)] == [[12, 8, 8], [8, 8, 6], [7, 1, 1], [1, 1, 1]]
    torch.manual_seed(0)
    train = TensorTrain(12, 10, 3, zero=False).double()
    a, b, c, d, e = train.cores
    whole = torch.einsum("xar,rbs,sct,tdu,uey->abcde", a, b, c, d, e).reshape(12, 10)
    torch.testing.assert_close(train(), whole)
    assert train().std().item() == pytest.approx((2 / 22) ** 0.5 / 2**0.5, rel=0.6)


@pytest.mark.parametrize("bits", [8, 4])
def test_intloras_merged_weight_is_whole_numbers_times_a_scale(bits):
    from neat_bench.methods.intlora import IntLoRAMap

    torch.manual_seed(0)
    weight = torch.randn(16, 32)
    adapted = IntLoRAMap(weight, 4, 1.0, bits, shift=False, seed=0)
    start, _ = adapted.merged(weight, None)
    error = (start - weight).norm() / weight.norm()
    assert error < {8: 0.05, 4: 0.6}[bits]
    move_float32(adapted)
    merged, _ = adapted.merged(weight, None)
    whole = merged / adapted.E
    torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-2)
    levels = adapted.whole_numbers()
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=0)
    assert (adapted.integers.abs() <= 2**bits - 1).all()
    shifted = IntLoRAMap(weight, 4, 1.0, bits, shift=True, seed=0)
    ratio = (shifted.merged(weight, None)[0] / shifted.integers)[shifted.integers != 0].abs().log2()
    torch.testing.assert_close(ratio, ratio.round(), rtol=0, atol=1e-4)


def move_float32(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.01 * torch.randn_like(parameter)


def test_pafi_trains_the_smallest_entries_and_sara_those_below_the_threshold(make_model):
    model, _ = make_model("bert")
    attach(method_of("method=pafi", "method.share=0.1"), model)
    for _, _, adapted, weight in layers_of(model):
        size = weight.abs().flatten()
        assert size[adapted.entries].max() <= size.sort().values[len(adapted.entries)]
    model, _ = make_model("bert")
    attach(method_of("method=sara", "method.threshold=0.005"), model)
    for _, _, adapted, weight in layers_of(model):
        assert torch.equal(adapted.entries, (weight.abs().flatten() <= 0.005).nonzero()[:, 0])


def test_sara_freezes_what_has_grown_and_penalises_the_rank(make_model):
    method, model, inputs = attached(make_model, "sara", "bert")
    _, _, adapted, weight = next(iter(layers_of(model)))
    with torch.no_grad():
        adapted.values[::2] = 1.0
    method.on_step(model, 4, 10)
    assert adapted.active.all()
    method.on_step(model, 5, 10)
    assert adapted.active.tolist() == [index % 2 == 1 for index in range(len(adapted.values))]
    loss_of(model, inputs).backward()
    assert adapted.values.grad[::2].abs().max() == 0
    with torch.no_grad():
        adapted.values.fill_(7.0)
    update = adapted.of_weight(weight).reshape(-1)[adapted.entries]
    assert set(update[::2].tolist()) == {1.0}
    assert set(update[1::2].tolist()) == {7.0}
    assert method.penalty(model) is None  # no side above 64 in a tiny model


def test_psts_schedule_is_cubic_and_its_merged_weight_sparse(make_model):
    method, model, _ = attached(make_model, "pst", "bert")
    move(model)
    shares = [method.share_at(step, 100) for step in (5, 10, 40, 70, 100)]
    assert shares == pytest.approx([0, 0, 0.5 * (1 - 0.5**3), 0.5, 0.5])
    method.on_step(model, 100, 100)
    for _, _, adapted, weight in layers_of(model):
        merged, _ = adapted.merged(weight, None)
        assert (merged.abs() < 1e-12).double().mean().item() == pytest.approx(0.5, abs=1e-3)


def test_adaloras_budget_falls_cubically_and_drops_the_least_important(make_model):
    method = method_of("method=adalora", "method.rank=6", "method.target_rank=2", "method.interval=5")
    assert method.budget(20, 100, 10) == (60, False)
    assert method.budget(45, 100, 10) == (int(20 + 40 * 0.5**3), True)
    assert method.budget(46, 100, 10)[1] is False
    assert method.budget(70, 100, 10) == (20, True)  # the last choice, interval or not
    assert method.budget(71, 100, 10) == (20, False)


def test_powerprop_shrinks_small_gradients():
    from neat_bench.methods.powerprop import PowerpropMap

    adapted = PowerpropMap(torch.tensor([[1e-4, 1.0]]), 3.0)
    adapted.merged(torch.zeros(1, 2), None)[0].sum().backward()
    assert adapted.root.grad[0, 0] < adapted.root.grad[0, 1] / 100
