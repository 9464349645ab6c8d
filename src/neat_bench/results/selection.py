"""Which setting of a sweep a method is judged by, and how many were tried to find it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import comb

from neat_bench.results.store import flattened

# command-line choices that say where a run stands in a table, or change nothing that is measured
_NO_SETTING = (
    "method",
    "dataset",
    "model",
    "seed",
    "logger",
    "launcher",
    "rerun",
    "resume",
    "on_oom",
    "debug",
    "checkpoint",
    "paths",
    "experiment",
    "protocol",
)


def settings_of(record: dict[str, Any]) -> str:
    """Return what a run's command line set beside method, data, model and seed."""
    kept = []
    for override in record["overrides"]:
        key = override.lstrip("+~").split("=")[0]
        if key.split(".")[0].split("@")[0] not in _NO_SETTING or key.startswith(("method.", "dataset.", "model.")):
            kept.append(override)
    return " ".join(sorted(kept))


def validation_score(record: dict[str, Any], protocol: str) -> float:
    """Return what a setting is chosen by: the score, at the reported evaluation, of the part that selects.

    Under best_dev that is the reported score itself, which is why that protocol is marked optimistic.
    """
    metric = record["metric"]
    if protocol == "best_dev":
        return record["results"][protocol][metric]
    # of a run with several test sets, `results` of one of them; the history is the run's
    step = record["results"][protocol]["step"]
    return next(scores["selection"][metric] for scores in record["history"] if scores["step"] == step)


@dataclass(frozen=True)
class Variant:
    """One setting of a method on one task: its runs, which differ in the seed alone."""

    runs: list[dict[str, Any]]
    protocol: str

    @cached_property
    def by_seed(self) -> dict[int, dict[str, Any]]:
        """The runs by seed, in order."""
        return {run["seed"]: run for run in sorted(self.runs, key=lambda run: run["seed"])}

    @cached_property
    def config(self) -> dict[str, str]:
        """What its runs were told, as dotted key -> value."""
        return flattened(self.runs[0]["config"])

    def validation(self, seeds: set[int]) -> float:
        """Return the mean validation score over seeds."""
        return float(np.mean([validation_score(run, self.protocol) for s, run in self.by_seed.items() if s in seeds]))

    def score(self, seeds: set[int]) -> float:
        """Return the mean reported score over seeds."""
        found = [run["results"][self.protocol][run["metric"]] for s, run in self.by_seed.items() if s in seeds]
        return float(np.mean(found))


@dataclass(frozen=True)
class Selection:
    """The best of a method's settings on a task by validation, and what stands in the table for it.

    tuned_on: the seeds that chose it (those which all settings share), empty where there was nothing to choose.
    runs: the runs that are reported: new seeds where there are some, else all.
    """

    variants: list[Variant]
    chosen: Variant
    tuned_on: frozenset[int]
    runs: list[dict[str, Any]]

    @property
    def tried(self) -> int:
        """How many settings were tried."""
        return len(self.variants)

    def setting(self, variant: Variant) -> str:
        """Return what sets a setting apart from the others tried; of a single one, what the command line gave."""
        if self.tried == 1:
            return settings_of(variant.runs[0]) or "as shipped"
        # a field that older records lack is null in them
        apart = [
            f"{key}={value}" for key, value in variant.config.items()
            if any(each.config.get(key, "null") != value for each in self.variants)
        ]  # fmt: skip
        return " ".join(apart).replace('"', "")

    def best_of(self) -> list[float]:
        """Return for k = 1 ... tried the reported score expected of the best of k settings drawn at random.

        The best by validation, its reported score over the tuning seeds; exact, without replacement (Dodge et al.
        2019, arXiv 1909.03004, with the finite-sample form). Each of several that tie is as likely.
        """
        seeds = set(self.tuned_on) or set(self.chosen.by_seed)
        ranked = sorted(self.variants, key=lambda variant: variant.validation(seeds))
        validation, scores = np.array([(variant.validation(seeds), variant.score(seeds)) for variant in ranked]).T
        scores = np.array([scores[validation == value].mean() for value in validation])
        count = len(ranked)
        return [float((comb(np.arange(count), k - 1) / comb(count, k)) @ scores) for k in range(1, count + 1)]


def select(records: Sequence[dict[str, Any]], protocol: str) -> Selection:
    """Return the best setting among a method's runs on one task, by the mean validation score over shared seeds.

    Settings that share no seed are compared over their own. Ties go to the setting with more seeds (a grid repeats
    one of those that tie), then to the first by config hash.
    """
    by_config: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_config.setdefault(record["hashes"]["config"], []).append(record)
    variants = [Variant(runs, protocol) for _, runs in sorted(by_config.items())]
    if len(variants) == 1:
        return Selection(variants, variants[0], frozenset(), list(variants[0].by_seed.values()))
    shared = set.intersection(*(set(variant.by_seed) for variant in variants))
    chosen = max(variants, key=lambda each: (each.validation(shared or set(each.by_seed)), len(each.by_seed)))
    new = [run for seed, run in chosen.by_seed.items() if seed not in shared]
    return Selection(variants, chosen, frozenset(shared), new if shared and new else list(chosen.by_seed.values()))
