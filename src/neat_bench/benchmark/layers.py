"""One adapted linear layer: time of a training step and memory, our methods beside peft's.

A step is forward, backward (to the adapter and to the layer's input) and AdamW, on fixed inputs. All contestants
live in one process and take turns, round by round, so that a slow moment of the machine meets all of them; a
figure is the median over rounds of the ratio to our LoRA in the same round.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from neat_bench.methods.adapted import AdaptedLinear
from neat_bench.methods.base import MapMethod
from neat_bench.methods.dora import DoRA
from neat_bench.methods.lora import LoRA
from neat_bench.methods.neat import NEAT
from neat_bench.methods.red import RED
from neat_bench.models.roles import Place

REFERENCE = "lora"


@dataclass(frozen=True)
class Shape:
    """A linear layer (inputs -> outputs) and the tokens of a batch, with the adapter's rank."""

    name: str
    inputs: int
    outputs: int
    tokens: int
    rank: int


SHAPES = {
    "cpu": [
        Shape("MiniLM attention", 384, 384, 1024, 8),
        Shape("MiniLM feed-forward", 384, 1536, 1024, 8),
        Shape("BERT-base attention", 768, 768, 1024, 8),
        Shape("BERT-base feed-forward", 768, 3072, 1024, 8),
        Shape("RoBERTa-large attention", 1024, 1024, 1024, 8),
        Shape("Llama-7B attention", 4096, 4096, 512, 32),
    ],
    "cuda": [
        Shape("BERT-base attention", 768, 768, 8192, 8),
        Shape("RoBERTa-large feed-forward", 1024, 4096, 8192, 8),
        Shape("Llama-7B attention", 4096, 4096, 4096, 32),
        Shape("Llama-7B feed-forward", 4096, 11008, 4096, 32),
        Shape("Llama-7B attention, 16k tokens", 4096, 4096, 16384, 32),
    ],
}


def ours(method: MapMethod) -> Callable[[nn.Linear], nn.Module]:
    """Return what puts one of our methods on a layer."""

    def build(linear: nn.Linear) -> nn.Module:
        adapted = AdaptedLinear(linear.requires_grad_(False))
        adapted.add("query", None, method.make_map(Place("query", 0, "query", linear), linear.weight))
        return adapted

    return build


def theirs(config: Callable[[], Any]) -> Callable[[nn.Linear], nn.Module]:
    """Return what puts a peft config's adapter on a layer."""

    def build(linear: nn.Linear) -> nn.Module:
        import peft

        return peft.inject_adapter_in_model(config(), nn.ModuleDict({"query": linear})).get_submodule("query")

    return build


def contestants(rank: int) -> dict[str, Callable[[nn.Linear], nn.Module]]:
    """Return name -> builder of an adapted layer, all of one rank."""
    import peft

    def named(name: str) -> dict[str, Any]:
        return {"name": name, "label": name, "targets": ["query"]}

    place: dict[str, Any] = {"target_modules": ["query"], "r": rank}
    return {
        "lora": ours(LoRA(rank=rank, alpha=rank, **named("lora"))),
        "dora": ours(DoRA(rank=rank, alpha=rank, **named("dora"))),
        "red": ours(RED(**named("red"))),
        "neat": ours(NEAT(rank=rank, **named("neat"))),
        "neat, depth 4": ours(NEAT(rank=rank, depth=4, **named("neat"))),
        "peft lora": theirs(lambda: peft.LoraConfig(lora_alpha=rank, **place)),
        "peft dora": theirs(lambda: peft.LoraConfig(lora_alpha=rank, use_dora=True, **place)),
        "peft peanut": theirs(lambda: peft.PeanutConfig(**place)),
    }


class Contestant:
    """An adapted layer with its optimizer, inputs and the gradient that comes from above."""

    def __init__(self, layer: nn.Module, shape: Shape, dtype: torch.dtype, device: str) -> None:
        self.layer = layer.to(device)
        self.device = device
        self.trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        for parameter in self.trained:
            nn.init.normal_(parameter, std=0.02)  # B too: from zero, some gradients would be zero
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5)
        self.x = torch.randn(shape.tokens, shape.inputs, device=device, dtype=dtype).requires_grad_()
        self.gradient = torch.randn(shape.tokens, shape.outputs, device=device, dtype=dtype)

    def forward(self) -> Tensor:
        """Return the layer's output, tokens x outputs."""
        return self.layer(self.x)

    def step(self) -> None:
        """Take one training step."""
        self.forward().backward(self.gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.x.grad = None

    def seconds(self, repeats: int) -> float:
        """Return the time of one step, over some repeats."""
        _wait(self.device)
        started = time.perf_counter()
        for _ in range(repeats):
            self.step()
        _wait(self.device)
        return (time.perf_counter() - started) / repeats

    def kept_bytes(self) -> int:
        """Return the bytes that forward keeps for backward, but for parameters, frozen weights and the input."""
        known = {tensor.untyped_storage().data_ptr() for tensor in (*self.layer.parameters(), self.x)}
        known |= {buffer.untyped_storage().data_ptr() for buffer in self.layer.buffers()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.forward()
        return sum(kept.values())

    def peak_bytes(self) -> int:
        """Return the peak of a step's memory: weights, optimizer state and inputs, and what comes on top."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            torch.cuda.synchronize()
            return self._resident() + torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self.step()
        # the events that torch's own list is made of: that list leaves out what an operator keeps
        events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        return self._resident() + peak

    def _resident(self) -> int:
        state = [value for kept in self.optimizer.state.values() for value in kept.values() if torch.is_tensor(value)]
        tensors = [*self.layer.parameters(), *self.layer.buffers(), self.x, self.gradient, *state]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(shape: Shape, device: str, dtype: torch.dtype, rounds: int, round_seconds: float) -> dict[str, Any]:
    """Return for each contestant its step time and memory as ratios to our LoRA, and the spread over rounds."""
    torch.manual_seed(0)
    linear = nn.Linear(shape.inputs, shape.outputs).to(dtype)
    entered = {
        name: Contestant(build(copy.deepcopy(linear)), shape, dtype, device)
        for name, build in contestants(shape.rank).items()
    }
    for contestant in entered.values():
        contestant.seconds(2)  # warm-up: memory, optimizer state, kernels
    repeats = max(1, int(round_seconds / entered[REFERENCE].seconds(3)))
    times: dict[str, list[float]] = {name: [] for name in entered}
    for _ in range(rounds):
        for name, contestant in entered.items():
            times[name].append(contestant.seconds(repeats))
    kept = {name: contestant.kept_bytes() for name, contestant in entered.items()}
    peak = {name: contestant.peak_bytes() for name, contestant in entered.items()}
    results = {}
    for name in entered:
        ratios = [own / reference for own, reference in zip(times[name], times[REFERENCE], strict=True)]
        results[name] = {
            "time": statistics.median(ratios),
            "time_low": min(ratios),
            "time_high": max(ratios),
            "peak_memory": peak[name] / peak[REFERENCE],
            "kept_for_backward": kept[name] / kept[REFERENCE],
        }
    return {"shape": vars(shape), "dtype": str(dtype).removeprefix("torch."), "rounds": rounds, "results": results}
