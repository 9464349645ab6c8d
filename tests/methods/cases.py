"""Every method under test: its overrides, where it applies, what it counts; and what tests do with it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from conftest import logits_of, method_of
from neat_bench.config import names_in
from neat_bench.methods.base import attach
from neat_bench.methods.tensor_train import factors_of
from neat_bench.models.roles import find_places, head_names

EVERY = ("bert", "roberta", "vit", "dinov2", "llama", "timm")
# of the role map: separate matrices with biases, without, and a fused one
KINDS = ("bert", "llama", "timm")
CLASSIFIERS = ("bert", "timm")

Count = Callable[..., int]


@dataclass(frozen=True)
class Case:
    """Overrides of the method's fields; parameters of a place (method, out, in) or of all (method, sizes).

    sizes: role, out and in of each place. selects: which pretrained parameters train, by name.
    """

    overrides: str = ""
    each: Count | None = None
    whole: Count | None = None
    on: tuple[str, ...] = KINDS
    selects: Callable[[str], bool] = lambda name: False


def low_rank(m, out, inputs):
    return m.rank * (inputs + out)


def network(m, out, inputs):
    return 2 * out * m.rank + (m.depth - 2) * m.rank**2


def vectors(m, sizes):
    return sum(out * (m.train_scale + m.train_bias) for _, out, _ in sizes)


def bottlenecks(places):
    return lambda m, sizes: places * (2 * 32 * m.bottleneck + 32 + m.bottleneck)


def reft(m, sizes):
    return 3 * (2 * m.rank * 32 + m.rank)


def train_size(rows, columns, rank=5):
    """Parameters of a tensor train over the factors of both sizes."""
    sizes = [size for size in (*factors_of(rows, 3), *factors_of(columns, 2)) if size > 1]
    ranks = [1, *[rank] * (len(sizes) - 1), 1]
    return sum(before * size * after for before, size, after in zip(ranks, sizes, ranks[1:], strict=False))


def share(m, sizes):
    return int(m.share * sum(out * inputs for _, out, inputs in sizes))


def attention_heads(m, sizes):
    """InCA's docstring on a hidden size of 32 and three classes."""
    return 3 * (m.queries * 32 + 4 * 32**2 + 4 * 32 + 2 * 32 + 2 * 32 + 33 * 3)


def is_norm_name(name):
    return any(word in name.lower() for word in ("layernorm", "norm"))


MAPS = {
    "neat": Case("", network, on=EVERY),
    "neat depth 4": Case("depth=4 activation=tanh scale=0.5 rank=4", network, on=EVERY),
    "neat depth 6, mlp": Case("depth=6 activation=sin targets=[mlp_up,mlp_down] rank=4", network),
    "neat_s": Case("layers='1:'", network),
    "multiplicative": Case("rank=4", network),
    "neat_random": Case("rank=4", lambda m, out, inputs: out * m.rank),
    "lora": Case("", low_rank, on=EVERY),
    "lora rank-stabilised, more": Case("rank_stabilised=true targets=[key,output,mlp_up]", low_rank),
    "nonlinear_lora": Case("rank=4 activation=sigmoid", low_rank),
    "dora": Case("targets=[query,value,mlp_down]", lambda m, out, inputs: low_rank(m, out, inputs) + out, on=EVERY),
    "red": Case(whole=vectors, on=EVERY),
    "red attention, bias only": Case("targets=[output] train_scale=false", whole=vectors),
    "ia3": Case(whole=lambda m, sizes: sum(i if role == "mlp_down" else o for role, o, i in sizes)),
    "pissa": Case("rank=4", low_rank),
    "pissa randomised": Case("rank=4 niter=4", low_rank),
    "milora": Case("rank=4", low_rank),
    "lora_ga": Case("rank=4", low_rank),
    "adalora": Case("rank=4 target_rank=2 interval=1", lambda m, out, inputs: m.rank * (out + inputs + 1)),
    "vera": Case("rank=16", lambda m, out, inputs: m.rank + out),
    "vera all": Case("rank=8 targets=[query,mlp_up,mlp_down]", lambda m, out, inputs: m.rank + out),
    "fourierft": Case("count=40", lambda m, out, inputs: m.count),
    "fourierft normal": Case("count=40 zero_start=false scale=15", lambda m, out, inputs: m.count),
    "melora": Case("rank=3 targets=[query,mlp_up]", low_rank),
    "gift": Case("rank=4 targets=[query,mlp_down]",
                 whole=lambda m, sizes: sum(2 * i * m.rank for _, i in {(role, i) for role, _, i in sizes})),
    "lorta": Case("rank=4", whole=lambda m, sizes: m.rank * (32 + 8 + 4 + 4 + 3), on=CLASSIFIERS),
    "loretta_rep": Case("rank=4", lambda m, out, inputs: train_size(m.rank, inputs) + train_size(out, m.rank)),
    "loretta_rep released": Case("rank=4 zero_start=false",
                                 lambda m, out, inputs: train_size(m.rank, inputs) + train_size(out, m.rank)),
    "deep_lora": Case("rank=4", lambda m, out, inputs: m.depth * m.rank**2),
    "deep_lora gamma": Case("rank=4 gamma=0.1", lambda m, out, inputs: m.depth * m.rank**2 + low_rank(m, out, inputs)),
    "deep_lora whole": Case("compressed=false",
                            lambda m, out, inputs: min(out, inputs) * (inputs + min(out, inputs) + out)),
    "intlora_mul": Case("rank=4", low_rank),
    "intlora_shift": Case("rank=4", low_rank),
    "hiwi": Case("rank=4", lambda m, out, inputs: 2 * m.rank * out, on=CLASSIFIERS),
    "hiwi weight": Case("rank=4 form=weight", lambda m, out, inputs: 2 * m.rank * inputs),
    "ether": Case("targets=[query,mlp_up]", lambda m, out, inputs: inputs),
    "ether_plus": Case("", lambda m, out, inputs: 2 * (inputs + out)),
    "ether_plus input": Case("both_sides=false", lambda m, out, inputs: 2 * inputs),
    "pafi": Case("share=0.05", lambda m, out, inputs: int(m.share * out * inputs)),
    "pafi over model": Case("share=0.05 over_model=true", whole=share),
    "sara": Case("share=0.05", whole=share),
    "pst": Case("rank=4", lambda m, out, inputs: 2 * m.rank * (inputs + out) + inputs + out),
    "powerprop": Case("", lambda m, out, inputs: out * inputs),
}  # fmt: skip
EDITS = {
    "red block": Case("targets=[block]", whole=lambda m, sizes: 3 * 2 * 32, on=EVERY),
    "houlsby": Case("bottleneck=6", whole=bottlenecks(6)),
    "pfeiffer": Case("bottleneck=6", whole=bottlenecks(3)),
    "parallel": Case("bottleneck=6", whole=bottlenecks(3)),
    "loretta_adp": Case("bottleneck=8", selects=is_norm_name),
    "loreft": Case(whole=reft, on=EVERY),
    "loreft first": Case("positions=first count=2 rank=1", whole=reft),
    "direft": Case("positions=last", whole=reft),
    "sibo": Case("rank=4", low_rank),
    "sibo_adapter": Case("bottleneck=6", whole=bottlenecks(6)),
    "inca": Case("heads=4", whole=attention_heads, on=("bert", "vit", "dinov2", "timm")),
    "meft1": Case("bottleneck=6", whole=bottlenecks(6), on=("bert", "roberta")),
    "meft2": Case("bottleneck=6", whole=bottlenecks(6), on=("bert", "roberta")),
    "meft3": Case("bottleneck=6", whole=bottlenecks(6), on=("bert", "roberta")),
}
SELECTIONS = {
    "full": Case(selects=lambda name: True, on=EVERY),
    "linear_probe": Case(on=("bert", "roberta", "vit", "timm")),
    "bitfit": Case(selects=lambda name: name.endswith("bias"), on=("bert", "roberta", "vit", "timm")),
    "ln_tuning": Case(selects=is_norm_name),
    "untuned": Case(),
}
# at least one matrix gets a LoRA, others single entries
MIXED = {
    "spt": Case("parameters=700 rank=1 alpha=20", selects=lambda name: name.endswith("bias") or is_norm_name(name))
}
CASES = MAPS | EDITS | SELECTIONS | MIXED
PEFT = {f"peft/{name}": Case(on=("bert",)) for name in names_in("method/peft")}


def pairs(cases, kinds=EVERY):
    """Return (name, architecture) for the cases wherever they apply."""
    return [(name, architecture) for name, case in cases.items() for architecture in case.on if architecture in kinds]


def method_named(name):
    """Return the method of a case."""
    case = (CASES | PEFT)[name]
    return method_of(f"method={name.split()[0]}", *(f"method.{each}" for each in case.overrides.split()))


class Toy:
    """The part of a task that methods see: a squared loss on logits."""

    def logits(self, model, batch):
        return logits_of(model, batch)

    def loss_of(self, logits, batch):
        return logits.square().mean()

    def loss(self, model, batch):
        return self.loss_of(self.logits(model, batch), batch)


class ToyClasses(Toy):
    """The same with cross-entropy over the two rows of the inputs."""

    def loss_of(self, logits, batch):
        return F.cross_entropy(logits, torch.tensor([0, 1]) if logits.shape[1] == 2 else torch.tensor([0, 2]))


def attached(make_model, method, architecture, dtype=torch.float64, prepared=True):
    """Return a method, a tiny model that has it (and looked at a batch), and inputs."""
    method = method_named(method) if isinstance(method, str) else method
    model, inputs = make_model(architecture, dtype)
    torch.manual_seed(0)
    attach(method, model)
    model.to(dtype)
    if prepared and method.prepare_batches:
        method.prepare(model, [inputs], lambda batch: Toy().loss(model, batch))
        model.to(dtype)
    return method, model, inputs


def move(module, by=0.1):
    """Take every trainable parameter away from its start, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


def adapter_parameters(model):
    """Return the trainable parameters by name, head apart."""
    head = head_names(model)
    return {n: value for n, value in model.named_parameters() if value.requires_grad and n not in head}


def learn(method, model, inputs, steps=30, rate=2e-2):
    """Return the losses of some steps that train the method's parameters and leave the head alone."""
    optimizer = torch.optim.Adam(adapter_parameters(model).values(), lr=rate)
    losses = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # losses that can be compared
    for step in range(steps):
        model.train()
        loss = method.loss(ToyClasses(), model, inputs)
        penalty = method.penalty(model)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        method.on_step(model, step + 1, steps)
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def sizes_of(method, model):
    """Return role, out and in of every place that a method would take in a plain model."""
    found = []
    for place in find_places(model, [role for role in method.targets if role != "block"], method.layers):
        out, inputs = place.module.weight.shape
        found.append((place.role, out if place.rows is None else place.rows[1] - place.rows[0], inputs))
    return found
