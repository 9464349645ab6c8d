"""Grids: equal terms, as many settings for each method, the best of them on new seeds."""

import json

import pytest

from neat_bench.config import build, compose, load_named, names_in, plain
from neat_bench.errors import InputError
from neat_bench.grid import Column, Grid, Row, run_grid
from neat_bench.results.selection import validation_score
from neat_bench.results.tables import TableSpec


@pytest.mark.parametrize("name", names_in("grid"))
def test_the_runs_of_a_grid_differ_in_method_and_rate_alone(name):
    grid = load_named(Grid, "grid", name)
    terms = {}
    for dataset, row_name, row in grid.cells(grid.datasets):
        config = build(compose(grid.overrides(dataset, row_name, row, 1e-3, 1)))
        values = plain(config)
        values.pop("method")
        head = values["optimizer"].pop("head_lr")
        values["trainer"].pop("cache_frozen_prefix")  # a saving where nothing below the head trains
        # a probe tunes its head, and the untuned model has nothing to tune
        assert head == grid_head(grid) or row_name in ("linear_probe", "untuned")
        assert terms.setdefault(dataset, values) == values, row_name
    shown = set()
    for each in grid.tables:
        table = load_named(TableSpec, "table", each)
        shown |= {f"{table.suite}/{task}" for task in table.columns}
    assert set(grid.datasets) == shown


def grid_head(grid):
    rates = [each.split("=")[1] for each in grid.common if each.startswith("optimizer.head_lr=")]
    return float(rates[0]) if rates else None


def test_the_seed_that_chooses_is_not_reported_and_all_try_as_much():
    row = {"lora": Row(), "full": Row(learning_rates=[1e-5, 1e-4])}
    with pytest.raises(InputError, match="seed 0 chooses"):
        Grid(tables=["t"], datasets={"d": Column()}, methods=row, learning_rates=[1e-3, 1e-2], seeds=[0, 1])
    with pytest.raises(InputError, match="seed 0 chooses"):
        Grid(tables=["t"], datasets={"d": Column(seeds=[0])}, methods=row, learning_rates=[1e-3, 1e-2], seeds=[1])
    with pytest.raises(InputError, match="full has 2 learning rates, the others 3"):
        Grid(tables=["t"], datasets={"d": Column()}, methods=row, learning_rates=[1e-3, 1e-2, 1e-1], seeds=[1])


def test_a_grid_reports_the_best_rate_of_each_method_on_new_seeds(tiny_overrides, tmp_path, capfd):
    column = Column(overrides=["trainer.epochs=1"], seeds=[1])
    grid = Grid(
        tables=["grid_embedded"], datasets={"packaged/gloss_polarity": column}, learning_rates=[1e-5, 1e-2], seeds=[2],
        methods={"linear_probe": Row(), "untuned": Row(learning_rates=[1e-3])},
        common=[o for o in tiny_overrides if not o.startswith(("dataset.", "paths.", "logger"))]
        + ["trainer.limit_train=32", "trainer.limit_evaluation=16"],
    )  # fmt: skip
    more = ["logger=none", *(o for o in tiny_overrides if o.startswith("paths."))]
    run_grid(grid, more)
    records = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob("seed*.json")]
    assert sorted((r["names"]["method"], r["seed"]) for r in records) == [
        ("linear_probe", 0), ("linear_probe", 0), ("linear_probe", 1), ("untuned", 1),
    ]  # fmt: skip
    tried = [r for r in records if r["names"]["method"] == "linear_probe" and r["seed"] == 0]
    best = max(tried, key=lambda r: (validation_score(r, "split_validation"), -r["config"]["optimizer"]["lr"]))
    (reported,) = [r for r in records if r["names"]["method"] == "linear_probe" and r["seed"] == 1]
    assert reported["config"]["optimizer"]["lr"] == best["config"]["optimizer"]["lr"]
    run_grid(grid, more)
    assert "2 jobs, 2 already recorded" in capfd.readouterr().out


@pytest.mark.parametrize(("launcher", "together"), [("local", 1), ("slurm", 2)])
def test_one_machine_finishes_a_data_set_before_the_next(launcher, together, monkeypatch):
    datasets = {"packaged/gloss_polarity": Column(), "glue/rte": Column()}
    grid = Grid(
        tables=["t"], datasets=datasets, methods={"lora": Row(learning_rates=[1e-3])}, learning_rates=[1e-3], seeds=[1]
    )
    calls = []
    monkeypatch.setattr("neat_bench.grid._run", lambda overrides: calls.append(len(overrides)))
    run_grid(grid, [f"launcher={launcher}"])
    assert [runs for runs in calls if runs] == [together] * (2 // together)
