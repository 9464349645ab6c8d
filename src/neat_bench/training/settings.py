"""What the trainer can be told, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from neat_bench.errors import InputError, nearest

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # ours -> accelerate's
DEVICES = ("auto", "cpu")


@dataclass(kw_only=True)
class TrainerSettings:
    """How long, in what batches and at what precision a run trains.

    batch_size: items of one micro-batch, over all processes. accumulation: micro-batches an optimizer
    step. max_steps: stop after so many optimizer steps, whatever `epochs` says. clip_norm: largest
    gradient norm, None for no clipping. evaluate_every: optimizer steps between evaluations, None for
    once an epoch. patience: stop after so many evaluations without a better selection metric, None
    for never. limit_train, limit_evaluation: keep the first rows only, for quick checks. device: auto
    (CUDA or Apple's MPS where there is one) or cpu. log_every: optimizer steps between log lines.
    workers: processes that make batches, None for several beside a GPU and none beside a CPU; they change no
    number. save_adapter: keep the trained parameters of the reported epoch beside the record.
    """

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    evaluation_batch_size: int = 64
    precision: str = "fp32"
    clip_norm: float | None = 1.0
    evaluate_every: int | None = None
    patience: int | None = None
    limit_train: int | None = None
    limit_evaluation: int | None = None
    device: str = "auto"
    log_every: int = 10
    workers: int | None = None
    cache_frozen_prefix: bool = False
    prefix_cache_gb: float = 8.0
    compile: bool = False
    save_adapter: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "evaluation_batch_size", "log_every", "max_steps",
                     "evaluate_every", "patience", "limit_train", "limit_evaluation"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"trainer.{name} is at least 1, not {value}")
        if self.cache_frozen_prefix and self.compile:
            raise InputError("trainer.cache_frozen_prefix and trainer.compile exclude each other: turn one off")
        if self.prefix_cache_gb <= 0:
            raise InputError(f"trainer.prefix_cache_gb is above 0, not {self.prefix_cache_gb}")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"trainer.workers is not negative; got {self.workers}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise InputError(f"trainer.clip_norm is above 0 (null for no clipping), not {self.clip_norm}")
        for name, choices in (("precision", PRECISIONS), ("device", DEVICES)):
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"unknown trainer.{name} '{value}'{nearest(value, choices)}")


@dataclass(kw_only=True)
class Seeds:
    """Seeds of initial values, data order and dropout; None takes the run's seed."""

    init: int | None = None
    order: int | None = None
    dropout: int | None = None

    def filled(self, seed: int) -> dict[str, int]:
        """Return the three seeds with the run's seed where none is given."""
        return {name: seed if value is None else value for name, value in vars(self).items()}


@dataclass(kw_only=True)
class CheckpointSettings:
    """every: optimizer steps between checkpoints, None for none but those a signal asks for. keep: leave them there.

    They change no result.
    """

    every: int | None = 500
    keep: bool = False

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise InputError(f"checkpoint.every is at least 1 (null for none), not {self.every}")
