"""A grid on equal terms: every method with as many learning rates, chosen on validation, then new seeds reported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.experiment import path_of
from neat_bench.results.selection import validation_score
from neat_bench.results.store import read_record
from neat_bench.sweep import plan, run_sweep


@dataclass(kw_only=True)
class Row:
    """A method of a grid: its config's name (the row's own if None), overrides, and rates where it has its own."""

    method: str | None = None
    overrides: list[str] = field(default_factory=list)
    learning_rates: list[float] | None = None


@dataclass(kw_only=True)
class Column:
    """A data set of a grid: overrides that all its runs share, and seeds where it has its own."""

    overrides: list[str] = field(default_factory=list)
    seeds: list[int] | None = None


@dataclass(kw_only=True)
class Grid:
    """What configs/grid/<name>.yaml describes.

    tables: the files in configs/table that show it. datasets and methods: all are combined. common: overrides of
    every run. learning_rates: tried for each method with tuning_seed, except where a row has its own, as many of
    them; a row with a single rate has nothing to choose. seeds: those of the reported runs, other than tuning_seed.
    """

    tables: list[str]
    datasets: dict[str, Column]
    methods: dict[str, Row]
    learning_rates: list[float]
    seeds: list[int]
    tuning_seed: int = 0
    common: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if any(self.tuning_seed in self.seeds_of(dataset) for dataset in self.datasets):
            raise InputError(f"grid: seed {self.tuning_seed} chooses the learning rate, so it is not reported as well")
        for name, row in self.methods.items():
            count = len(self.rates(row))
            if count not in (1, len(self.learning_rates)):
                raise InputError(f"grid: {name} has {count} learning rates, the others {len(self.learning_rates)}")

    def rates(self, row: Row) -> list[float]:
        """Return the rates that are tried for a row."""
        return self.learning_rates if row.learning_rates is None else row.learning_rates

    def seeds_of(self, dataset: str) -> list[int]:
        """Return the seeds of a data set's reported runs."""
        own = self.datasets[dataset].seeds
        return self.seeds if own is None else own

    def cells(self, datasets: Iterable[str]) -> Iterator[tuple[str, str, Row]]:
        """Yield data set, row name and row of each cell of some data sets."""
        for dataset in datasets:
            for name, row in self.methods.items():
                yield dataset, name, row

    def overrides(self, dataset: str, name: str, row: Row, rate: float, seed: int) -> list[str]:
        """Return the command line of one run."""
        chosen = [f"method={row.method or name}", f"dataset={dataset}", *self.common]
        chosen += [*self.datasets[dataset].overrides, *row.overrides]
        return [*chosen, f"optimizer.lr={rate:g}", f"seed={seed}"]


def _run(overrides: list[list[str]]) -> dict[tuple[str, ...], Path]:
    """Run what is not recorded yet of some command lines; return where the record of each is."""
    if not overrides:
        return {}
    composed = [compose(each) for each in overrides]
    run_sweep(plan(overrides, composed), [])
    return {tuple(each): path_of(build(config)) for each, config in zip(overrides, composed, strict=True)}


def run_grid(grid: Grid, more: list[str]) -> None:
    """Run what is not recorded yet: the rates with the tuning seed, then the best of each cell with the other seeds.

    One machine finishes a data set before the next, so that a grid cut short has whole columns; a cluster gets all of
    them at once. more: overrides of every run that change no result, such as paths and launcher. Raises InputError if
    a run failed.
    """
    if build(compose(more)).launcher.name == "local":
        for dataset in grid.datasets:
            _run_columns(grid, [dataset], more)
    else:
        _run_columns(grid, list(grid.datasets), more)


def _run_columns(grid: Grid, datasets: list[str], more: list[str]) -> None:
    tuning = {
        (dataset, name): [[*grid.overrides(dataset, name, row, rate, grid.tuning_seed), *more] for rate in rates]
        for dataset, name, row in grid.cells(datasets)
        if len(rates := grid.rates(row)) > 1
    }
    paths = _run([each for settings in tuning.values() for each in settings])
    reported = []
    for dataset, name, row in grid.cells(datasets):
        rates, best = grid.rates(row), 0
        if len(rates) > 1:
            records = [read_record(paths[tuple(each)]) for each in tuning[dataset, name]]
            scores = [validation_score(record, record["protocol"]["reported"]) for record in records]
            best = scores.index(max(scores))
            print(f"{dataset}  {name}: lr {rates[best]:g} of " + "  ".join(
                f"{rate:g} {score:.4f}" for rate, score in zip(rates, scores, strict=True)))  # fmt: skip
        reported += [[*grid.overrides(dataset, name, row, rates[best], seed), *more] for seed in grid.seeds_of(dataset)]
    _run(reported)
