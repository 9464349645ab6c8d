"""Every method of the zoo: the properties that its docstring claims, on tiny models of every architecture."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import logits_of
from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.methods.base import AdaptedLinear, AdaptedMap, attach, layers_of, merge, unmerge
from neat_bench.methods.state import load_state, save_state, trained_state, trained_tensors
from neat_bench.methods.tensor_train import TensorTrain, factors_of
from neat_bench.models.roles import find_places, head_names

# of the role map: separate matrices with biases, without, and a fused one; test_properties.py has all six
ARCHITECTURES = ("bert", "llama", "timm")


def low_rank(m, out, inputs):
    return m.rank * (inputs + out)


# name -> (overrides, parameters of one place, or of the whole model as (method, places) -> count)
MAPS = {
    "pissa": ("rank=4", low_rank),
    "nonlinear_lora": ("rank=4 activation=sigmoid", low_rank),
    "multiplicative": ("rank=4", lambda m, out, inputs: 2 * out * m.rank),
    "neat_random": ("rank=4", lambda m, out, inputs: out * m.rank),
    "pissa randomised": ("rank=4 niter=4", low_rank),
    "milora": ("rank=4", low_rank),
    "lora_ga": ("rank=4", low_rank),
    "vera": ("rank=16", lambda m, out, inputs: m.rank + out),
    "vera all": ("rank=8 targets=[query,mlp_up,mlp_down]", lambda m, out, inputs: m.rank + out),
    "fourierft": ("count=40", lambda m, out, inputs: m.count),
    "fourierft normal": ("count=40 zero_start=false scale=15", lambda m, out, inputs: m.count),
    "melora": ("rank=3 targets=[query,mlp_up]", low_rank),
    "gift": ("rank=4 targets=[query,mlp_down]", None),
    "lorta": ("rank=4", None),
    "hiwi": ("rank=4", lambda m, out, inputs: 2 * m.rank * out),
    "hiwi weight": ("rank=4 form=weight", lambda m, out, inputs: 2 * m.rank * inputs),
    "ether": ("targets=[query,mlp_up]", lambda m, out, inputs: inputs),
    "ether_plus": ("", lambda m, out, inputs: 2 * (inputs + out)),
    "ether_plus input": ("both_sides=false", lambda m, out, inputs: 2 * inputs),
    "ia3": ("", None),
    "adalora": ("rank=4 target_rank=2 interval=1", lambda m, out, inputs: m.rank * (out + inputs + 1)),
    "loretta_rep": ("rank=4", None),
    "loretta_rep released": ("rank=4 zero_start=false", None),
    "deep_lora": ("rank=4", lambda m, out, inputs: m.depth * m.rank**2),
    "deep_lora whole": (
        "compressed=false",
        lambda m, out, inputs: min(out, inputs) * (inputs + min(out, inputs) + out),
    ),
    "intlora_mul": ("rank=4", low_rank),
    "intlora_shift": ("rank=4", low_rank),
    "pafi": ("share=0.05", None),
    "pafi over model": ("share=0.05 over_model=true", None),
    "sara": ("share=0.05", None),
    "pst": ("rank=4", lambda m, out, inputs: 2 * m.rank * (inputs + out) + inputs + out),
    "powerprop": ("", lambda m, out, inputs: out * inputs),
}


def make_method(name, table=MAPS):
    overrides = [f"method.{each}" for each in table[name][0].split()]
    return build(compose([f"method={name.split()[0]}", *overrides])).method


def train_size(rows, columns, rank=5):
    """Parameters of a tensor train over the factors of both sizes."""
    sizes = [size for size in (*factors_of(rows, 3), *factors_of(columns, 2)) if size > 1]
    ranks = [1, *[rank] * (len(sizes) - 1), 1]
    return sum(before * size * after for before, size, after in zip(ranks, sizes, ranks[1:], strict=False))


def loss_of(model, inputs):
    return logits_of(model, inputs).square().mean()


def attached(make_model, name, architecture, table=MAPS):
    """Return method, model with it (after its look at a batch) and inputs, or skip where it cannot apply."""
    if name == "lorta" and architecture == "llama":
        pytest.skip("grouped-query attention")
    if name == "hiwi" and architecture == "llama":
        pytest.skip("no biases")
    model, inputs = make_model(architecture)
    torch.manual_seed(0)
    method = make_method(name, table)
    attach(method, model)
    model.double()
    if method.prepare_batches:
        method.prepare(model, [inputs], lambda batch: loss_of(model, batch))
    return method, model, inputs


def move(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MAPS)
def test_step_zero_is_what_the_method_says(make_model, name, architecture):
    model, inputs = make_model(architecture)
    before = logits_of(model, inputs)
    method, changed, _ = attached(make_model, name, architecture)
    # factors, and what a base loses to them, are made in float32
    tolerance = 1e-5 if name.split()[0] in ("pissa", "milora", "lora_ga") else 1e-6
    same = torch.allclose(logits_of(changed, inputs), before, rtol=0, atol=tolerance)
    assert same == method.starts_at_pretrained


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MAPS)
def test_merge_equals_the_branches_and_unmerge_gives_the_bits_back(make_model, name, architecture):
    _, model, inputs = attached(make_model, name, architecture)
    move(model)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    branched = logits_of(model, inputs)
    merge(model)
    assert any(layer._pretrained is not None for layer in model.modules() if isinstance(layer, AdaptedLinear))
    merged = logits_of(model, inputs)
    unmerge(model)
    torch.testing.assert_close(merged, branched, rtol=0, atol=1e-8)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("architecture", ["bert", "timm"])
@pytest.mark.parametrize("name", MAPS)
def test_both_faces_agree_on_outputs_and_gradients(make_model, name, architecture):
    _, model, _ = attached(make_model, name, architecture)
    move(model)
    for layer, role, adapted, weight in list(layers_of(model))[:4]:
        rows = layer.rows_of(role)
        bias = layer.base.bias if rows is None else layer.base.bias[slice(*rows)]
        linear = nn.Linear(weight.shape[1], weight.shape[0]).double().requires_grad_(False)
        linear.weight.data, linear.bias.data = weight.detach().clone(), bias.detach().clone()
        torch.manual_seed(0)
        x = torch.randn(3, 5, weight.shape[1], dtype=torch.float64, requires_grad=True)
        target = torch.randn(3, 5, weight.shape[0], dtype=torch.float64)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        found = []
        for output in (adapted(x, linear), F.linear(x, *adapted.merged(linear.weight, linear.bias))):
            found.append([output, *torch.autograd.grad((output * target).sum(), [x, *trained], allow_unused=True)])
        for forward, merged in zip(*found, strict=True):
            torch.testing.assert_close(forward, merged, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("architecture", ["bert", "timm"])
@pytest.mark.parametrize("name", MAPS)
def test_saved_and_loaded_state_gives_the_same_logits(make_model, name, architecture, tmp_path):
    _, model, inputs = attached(make_model, name, architecture)
    move(model)
    save_state(tmp_path, trained_state(model), {})
    fresh, _ = make_model(architecture)
    torch.manual_seed(0)
    attach(make_method(name), fresh)  # no look at a batch: the state has to carry what it gave
    fresh.double()
    assert not torch.allclose(logits_of(fresh, inputs), logits_of(model, inputs))
    load_state(tmp_path, fresh)
    torch.testing.assert_close(logits_of(fresh, inputs), logits_of(model, inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", MAPS)
def test_what_trains_is_the_methods_own_and_all_of_it_gets_a_gradient(make_model, name, architecture):
    _, model, inputs = attached(make_model, name, architecture)
    move(model)
    head = head_names(model)
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    adapters = {
        f"{path}.{key}" for path, module in model.named_modules() if isinstance(module, AdaptedMap)
        for key, value in module.named_parameters() if value.requires_grad
    }  # fmt: skip
    assert trained - head <= adapters
    loss_of(model, inputs).backward()
    assert {key for key, value in model.named_parameters() if value.grad is not None} == trained


@pytest.mark.parametrize("architecture", ["bert", "llama", "timm"])
@pytest.mark.parametrize("name", MAPS)
def test_parameters_are_counted_by_the_docstrings_formula(make_model, name, architecture):
    plain, _ = make_model(architecture)
    method, model, _ = attached(make_model, name, architecture)
    places = find_places(plain, method.targets, method.layers)
    sizes = []
    for place in places:
        out, inputs = place.module.weight.shape
        sizes.append((place.role, out if place.rows is None else place.rows[1] - place.rows[0], inputs))
    if name.split()[0] == "gift":
        expected = sum(2 * inputs * method.rank for _, inputs in {(role, inputs) for role, _, inputs in sizes})
    elif name.split()[0] == "lorta":  # d 32, 4 heads, 3 layers
        expected = method.rank * (32 + 8 + 4 + 4 + 3)
    elif name.split()[0] in ("pafi", "sara"):
        every = [out * inputs for _, out, inputs in sizes]
        whole = name != "pafi"
        expected = int(method.share * sum(every)) if whole else sum(int(method.share * size) for size in every)
    elif name.split()[0] == "loretta_rep":
        expected = sum(train_size(method.rank, inputs) + train_size(out, method.rank) for _, out, inputs in sizes)
    elif name.split()[0] == "ia3":
        expected = sum(inputs if role == "mlp_down" else out for role, out, inputs in sizes)
    else:
        expected = sum(MAPS[name][1](method, out, inputs) for _, out, inputs in sizes)
    head = head_names(model)
    trained = sum(value.numel() for key, value in model.named_parameters() if value.requires_grad and key not in head)
    assert trained == expected > 0


LEARNERS = [*MAPS, "ln_tuning"]


@pytest.mark.parametrize("name", LEARNERS)
def test_thirty_steps_lower_the_loss(make_model, name):
    model, inputs = make_model("bert", torch.float32)
    torch.manual_seed(0)
    method = make_method(name) if name in MAPS else build(compose([f"method={name}"])).method
    attach(method, model)
    labels = torch.tensor([0, 2])

    def loss(batch):
        return F.cross_entropy(logits_of(model, batch), labels)

    if method.prepare_batches:
        method.prepare(model, [inputs], loss)
    head = head_names(model)
    trained = [p for key, p in model.named_parameters() if p.requires_grad and key not in head]  # not the head
    optimizer = torch.optim.Adam(trained, lr=2e-2)
    losses = []
    for step in range(30):
        value = loss(inputs)
        penalty = method.penalty(model)
        (value if penalty is None else value + penalty).backward()
        optimizer.step()
        method.on_step(model, step + 1, 30)
        optimizer.zero_grad()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 2e-4  # a frozen random head and narrow layers leave little to gain


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
        attach(make_method(name), changed)
        _, _, adapted, base = next(iter(layers_of(changed)))
        torch.testing.assert_close(base, (U[:, kept] * S[kept]) @ Vt[kept], rtol=0, atol=1e-6)
        whole, _ = adapted.double().merged(base, None)
        torch.testing.assert_close(whole, weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr"])
def test_lora_ga_starts_along_the_gradient_in_either_direction(make_model, direction):
    model, inputs = make_model("bert")
    torch.manual_seed(0)
    method = build(compose(["method=lora_ga", "method.rank=4", f"method.direction={direction}"])).method
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
        attach(build(compose([f"method={overrides.split()[0]}", *overrides.split()[1:]])).method, model)


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
    attach(build(compose(["method=pafi", "method.share=0.1"])).method, model)
    for _, _, adapted, weight in layers_of(model):
        size = weight.abs().flatten()
        assert size[adapted.entries].max() <= size.sort().values[len(adapted.entries)]
    model, _ = make_model("bert")
    attach(build(compose(["method=sara", "method.threshold=0.005"])).method, model)
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
    method = build(compose(["method=adalora", "method.rank=6", "method.target_rank=2", "method.interval=5"])).method
    assert method.budget(20, 100, 10) == (60, False)
    assert method.budget(45, 100, 10) == (int(20 + 40 * 0.5**3), True)
    assert method.budget(46, 100, 10)[1] is False
    assert method.budget(71, 100, 10) == (20, True)


def test_powerprop_shrinks_small_gradients():
    from neat_bench.methods.powerprop import PowerpropMap

    adapted = PowerpropMap(torch.tensor([[1e-4, 1.0]]), 3.0)
    adapted.merged(torch.zeros(1, 2), None)[0].sum().backward()
    assert adapted.root.grad[0, 0] < adapted.root.grad[0, 1] / 100
