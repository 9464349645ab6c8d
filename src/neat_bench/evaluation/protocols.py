"""Which epoch's number is reported, and on which items: the rules, all applied to every run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neat_bench.errors import InputError, nearest

PROTOCOLS = ("split_validation", "best_dev", "last")
SPLIT_SEED_OFFSET = 1_000_003  # keeps the split apart from the same seed's data order


@dataclass(kw_only=True)
class Protocol:
    """Names the reported rule.

    split_validation: the epoch is selected on rows that do not report (RED's protocol): a seeded part of the
    evaluation split, whose rest reports, or, where there is test data, the validation split or rows held out
    of the training split. best_dev: the epoch with the best score on the reporting split itself (what the NEAT
    and LoRA papers did; optimistic). last: the last epoch, on the whole split.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise InputError(f"unknown protocol.name '{self.name}'{nearest(self.name, PROTOCOLS)}")


def split_evaluation(items: int, selection_items: int | None, seed: int) -> np.ndarray:
    """Return a mask, one a test item, of those that select the epoch: `selection_items` or half of them.

    Raises InputError where one of the two parts would be empty.
    """
    count = (items + 1) // 2 if selection_items is None else selection_items
    if not 0 < count < items:
        raise InputError(
            f"protocol split_validation needs items on both sides, but {count} of {items} evaluation items would "
            "select: change dataset.selection_items or trainer.limit_evaluation"
        )
    mask = np.zeros(items, dtype=bool)
    mask[np.random.default_rng(SPLIT_SEED_OFFSET + seed).permutation(items)[:count]] = True
    return mask


@dataclass(frozen=True)
class Scores:
    """The scores of one evaluation on the whole split and on its two parts: metric -> value.

    epoch counts from 0; it is -1, and there is no training loss, where nothing trains.
    """

    step: int
    epoch: int
    train_loss: float | None
    whole: dict[str, float]
    selection: dict[str, float]
    report: dict[str, float]


def apply_protocols(history: list[Scores], metric: str) -> dict[str, tuple[int, dict[str, float]]]:
    """Return for each rule the index of the evaluation it chooses and the metrics it reports.

    Ties go to the earlier evaluation.
    """
    by_selection = int(np.argmax([scores.selection[metric] for scores in history]))
    by_whole = int(np.argmax([scores.whole[metric] for scores in history]))
    return {
        "split_validation": (by_selection, history[by_selection].report),
        "best_dev": (by_whole, history[by_whole].whole),
        "last": (len(history) - 1, history[-1].whole),
    }
