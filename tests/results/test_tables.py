"""From records to tables, on records made here."""

import csv
import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest
from made import record, runs

from neat_bench.errors import InputError
from neat_bench.results.comparisons import best_is_beyond_noise
from neat_bench.results.published import load_published
from neat_bench.results.render import parameter_text, to_csv, to_latex, to_markdown
from neat_bench.results.selection import select, settings_of
from neat_bench.results.tables import TableSpec, build_tables

ROOT = Path(__file__).resolve().parents[2]
SPEC = TableSpec(title="Small", suite="s", columns={"one": "ONE", "two": "TWO"}, rows=["full", "lora", "neat"])


def only(records, protocol="split_validation", spec=SPEC):
    (table,) = build_tables(spec, records, [], protocol)
    return table


def test_a_cell_is_mean_and_deviation_over_seeds():
    table = only(runs("neat", [0.80, 0.90, 0.85]))
    cell = table.rows[0].cells["one"]
    assert cell.mean == pytest.approx(0.85)
    assert cell.std == pytest.approx(0.05)
    assert (cell.parameters, cell.seconds, cell.memory) == (300_000, pytest.approx(11.0), 502 * 2**20)
    assert "| NEAT | 0.3M | 3 | 85.0 ± 5.0 |  |  | 11 | 502 |" in to_markdown(table)


def test_one_seed_has_no_deviation_and_wins_nothing():
    table = only(runs("neat", [0.9]) + runs("lora", [0.5]))
    assert table.marks("one") == {1: "second", 0: "second"}
    assert "<u>90.0</u>" in to_markdown(table)


def test_rows_follow_the_tables_order_and_others_come_after():
    table = only(runs("neat", [0.9]) + runs("zebra", [0.9]) + runs("full", [0.9]))
    assert [row.method for row in table.rows] == ["full", "neat", "zebra"]


def test_the_best_is_bold_where_its_lead_is_more_than_noise():
    clear = only(runs("neat", [0.90, 0.91, 0.92]) + runs("lora", [0.80, 0.81, 0.825]) + runs("full", [0.5, 0.5, 0.5]))
    assert {clear.rows[i].method: mark for i, mark in clear.marks("one").items()} == {
        "neat": "best",
        "lora": "second",
    }
    markdown, latex = to_markdown(clear), to_latex(clear)
    assert "**91.0 ± 1.0**" in markdown
    assert r"\textbf{91.0 $\pm$ 1.0}" in latex
    assert r"\underline{81.2 $\pm$ 1.3}" in latex
    noise = only(runs("neat", [0.90, 0.80, 0.86]) + runs("lora", [0.80, 0.90, 0.85]))
    assert set(noise.marks("one").values()) == {"second"}
    assert "**" not in to_markdown(noise)


def test_a_lead_needs_shared_seeds_and_to_hold_against_every_row():
    clear = {0: 0.9, 1: 0.91}
    assert best_is_beyond_noise([clear, {0: 0.8, 1: 0.811}])
    assert not best_is_beyond_noise([{0: 0.9, 1: 0.9}, {2: 0.1, 3: 0.1}])
    assert not best_is_beyond_noise([{0: 0.9}, {0: 0.1}])
    assert not best_is_beyond_noise([clear, {0: 0.8, 1: 0.81}])  # differences without any spread test nothing
    assert not best_is_beyond_noise([clear, {0: 0.8, 1: 0.811}, {0: 0.3, 1: 0.7}])  # a noisy third


def test_the_average_is_of_complete_seeds_only():
    table = only(runs("neat", [0.8, 0.9]) + runs("neat", [0.6], task="two") + runs("lora", [0.7, 0.8]))
    neat = next(row for row in table.rows if row.method == "neat")
    assert neat.scores("average", SPEC) == {0: pytest.approx(0.7)}
    lora = next(row for row in table.rows if row.method == "lora")
    assert lora.scores("average", SPEC) == {}


def test_groups_have_their_means_and_the_mean_of_those_is_not_the_average():
    grouped = TableSpec(title="G", suite="s", columns={"one": "ONE", "two": "TWO", "three": "THREE"},
                        groups={"Left": ["one", "two"], "Right": ["three"]})  # fmt: skip
    made = runs("neat", [0.2]) + runs("neat", [0.4], task="two") + runs("neat", [0.9], task="three")
    table = only(made, spec=grouped)
    assert list(grouped.all_columns.values()) == ["ONE", "TWO", "Left", "THREE", "Right", "Mean of groups", "Average"]
    assert "| NEAT | 0.3M | 1 | 20.0 | 40.0 | 30.0 | 90.0 | 90.0 | 60.0 | 50.0 | 10 | 500 |" in to_markdown(table)
    half = only(made[1:], spec=grouped).rows[0]
    assert (half.scores("Left", grouped), half.scores("average_of_groups", grouped)) == ({}, {})
    with pytest.raises(InputError, match="do not hold each column once"):
        TableSpec(title="G", suite="s", columns={"one": "ONE", "two": "TWO"}, groups={"Left": ["one"]})


def test_the_best_setting_by_validation_stands_for_its_method():
    made = [
        *runs("neat", [0.80], overrides=["optimizer.lr=1"], config="a", validation=0.9),
        *runs("neat", [0.95], overrides=["optimizer.lr=2"], config="b", validation=0.7),
        *runs("lora", [0.70], overrides=["optimizer.lr=1"], config="a", validation=0.6),
        *runs("lora", [0.71], overrides=["optimizer.lr=2"], config="b", validation=0.8),
    ]
    table = only(made)
    assert [(row.method, row.cells["one"].mean) for row in table.rows] == [("lora", 0.71), ("neat", 0.80)]
    markdown = to_markdown(table)
    assert "Of every method 2 settings were tried in each column, chosen by validation score over seed 0" in markdown
    selection = table.rows[1].cells["one"].selection
    assert selection.setting(selection.chosen) == "optimizer.lr=1"


def test_new_seeds_are_reported_after_tuning_and_the_tuning_seed_is_not():
    tuned = [
        record("neat", "one", 0, 0.99, ["optimizer.lr=1"], "a"),
        record("neat", "one", 0, 0.2, ["optimizer.lr=2"], "b"),
    ]
    new = [record("neat", "one", seed, 0.8, ["optimizer.lr=1"], "a") for seed in (1, 2)]
    cell = only(tuned + new).rows[0].cells["one"]
    assert cell.scores == {1: 0.8, 2: 0.8}
    assert cell.selection.tuned_on == {0}
    assert "new seeds are reported" in to_markdown(only(tuned + new))


def test_of_settings_that_tie_the_repeated_one_is_reported():
    made = [record("neat", "one", 0, 0.8, config=config) for config in ("aaa", "bbb")]
    made += [record("neat", "one", seed, 0.7, config="bbb") for seed in (1, 2)]
    found = select(made, "split_validation")
    assert found.chosen.runs[0]["hashes"]["config"] == "bbb"
    assert [run["seed"] for run in found.runs] == [1, 2]


def test_unequal_tuning_is_refused_unless_told_to_and_then_marked():
    made = runs("neat", [0.8], config="a") + runs("neat", [0.9], config="b") + runs("lora", [0.8])
    with pytest.raises(InputError, match=r"unequal numbers of settings tried \(NEAT 2, LORA 1\).*--unequal-tuning"):
        only(made)
    told = dataclasses.replace(SPEC, unequal_tuning=True)
    assert "UNEQUAL TUNING, not a fair comparison: settings tried: LORA 1, NEAT 2" in to_markdown(only(made, spec=told))
    # nothing to tune where nothing trains
    beside = runs("neat", [0.8], config="a") + runs("neat", [0.9], config="b") + runs("untuned", [0.8], trainable=0)
    assert "Of every method that trains 2 settings were tried" in to_markdown(only(beside))


def test_rows_are_split_by_the_fields_that_a_table_names():
    made = []
    for depth, score in ((10, 0.9), (2, 0.8), (4, 0.85)):
        found = runs("neat", [score, score], config=f"d{depth}")
        for each in found:
            each["config"] = each["config"] | {"method": {"depth": depth}}
        made += found
    spec = dataclasses.replace(SPEC, split_by=["method.depth"])
    rows = only(made + runs("lora", [0.8, 0.8]), spec=spec).rows
    assert [row.label for row in rows] == ["LORA", "NEAT (depth 2)", "NEAT (depth 4)", "NEAT (depth 10)"]
    budgeted = runs("lora", [0.8], config="b")
    budgeted[0]["config"] = budgeted[0]["config"] | {"budget": "0.1M"}
    assert [row.label for row in only(runs("lora", [0.8]) + budgeted).rows] == ["LORA", "LORA (budget 0.1M)"]


def test_a_setting_is_what_the_command_line_changed():
    overrides = ["seed=1", "optimizer.lr=0.1", "method=neat", "logger=none", "method.rank=2", "paths.data=/x"]
    assert settings_of({"overrides": overrides}) == "method.rank=2 optimizer.lr=0.1"


def test_runs_that_differ_in_what_moves_a_number_cannot_share_a_column():
    other = runs("lora", [0.8], hashes={"config": "c", "data": "other"})
    with pytest.raises(InputError, match=r"column M, one: runs differ in data \(d, other\).*--where hashes\.data="):
        only(runs("neat", [0.8]) + other)


def test_where_chooses_among_them():
    other = runs("lora", [0.8], hashes={"config": "c", "data": "other"})
    spec = TableSpec(title="T", suite="s", columns={"one": "ONE"}, where={"hashes.data": "other"})
    assert [row.method for row in only(runs("neat", [0.8]) + other, spec=spec).rows] == ["lora"]


def test_quick_checks_are_left_out_and_counted():
    limited = {
        "trainer": {"precision": "fp32", "evaluation_batch_size": 64, "limit_train": 64},
        "dataset": {},
    }
    table = only(
        runs("neat", [0.8]) + runs("lora", [0.9], config="x") + [record("red", "one", 0, 0.1) | {"config": limited}]
    )
    assert [row.method for row in table.rows] == ["lora", "neat"]
    assert "1 runs on limited data" in to_markdown(table)


def test_another_protocol_shows_its_own_numbers_and_its_mark():
    markdown = to_markdown(only(runs("neat", [0.80]), protocol="best_dev"))
    assert "85.0" in markdown
    assert "OPTIMISTIC" in markdown


HALVES = "a part of the evaluation split (half, unless set) selects the epoch, the rest reports it"
HELD_OUT = "rows held out of the training split select the epoch"


@pytest.mark.parametrize(
    ("dataset", "rule"),
    [
        ({"evaluation_split": "validation"}, HALVES),
        (
            {"evaluation_split": "validation", "test_split": "test"},
            "the validation split selects the epoch, the test split reports it",
        ),
        ({"evaluation_split": None, "test_split": "test"}, f"{HELD_OUT}, the test split reports it"),
        ({"evaluation_split": None, "test_sets": {"one": {}}}, f"{HELD_OUT}, the test sets report it"),
    ],
)
def test_the_footer_tells_which_rows_select_and_which_report(dataset, rule):
    made = runs("neat", [0.9, 0.8])
    for each in made:
        each["config"]["dataset"] = dataset
    assert f"Protocol split_validation: {rule}. Metrics" in to_markdown(only(made))
    assert "Protocol last: the last epoch, on the whole reported split. " in to_markdown(only(made, "last"))


def test_a_condition_that_not_all_columns_share_names_those_that_do():
    made = runs("neat", [0.8]) + runs("neat", [0.8], task="two", overrides=["trainer.precision=bf16"])
    told = "Conditions: evaluation batch 64; evaluation split validation; precision bf16 (TWO); precision fp32 (ONE)."
    assert told in to_markdown(only(made))
    assert "precision fp32. Measured" in to_markdown(only(made[:1]))


def test_columns_that_select_on_different_rows_are_told_apart():
    made = runs("neat", [0.9, 0.8]) + runs("neat", [0.7, 0.6], task="two")
    for each in made[2:]:
        each["config"]["dataset"] = {"evaluation_split": None, "test_split": "test"}
    assert f"split_validation: ONE: {HALVES}; TWO: {HELD_OUT}, the test split reports it." in to_markdown(only(made))


def test_flags_are_in_the_footer():
    markdown = to_markdown(only([record("neat", "one", 0, 0.5, flags=["at_chance"]), record("neat", "one", 1, 0.9)]))
    assert "| 70.0 ± 28.3 † |" in markdown
    assert "FLAG † NEAT, ONE: 1 of 2 runs collapsed (seed 0 at_chance); the mean holds them." in markdown


def test_latex_has_booktabs_and_no_raw_special_characters():
    made = runs("neat", [0.8])
    made[0]["names"]["method_label"] = "N & mlp_up"
    latex = to_latex(only(made))
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{table}", r"\end{table}", r"N \& mlp\_up"):
        assert part in latex
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert body.count("&") - body.count(r"\&") == 7


def test_csv_has_one_line_a_cell():
    rows = list(csv.DictReader(io.StringIO(to_csv([only(runs("neat", [0.8, 0.9]) + runs("lora", [0.7], task="two"))]))))
    assert [(row["method"], row["task"], row["mean"], row["seeds"]) for row in rows] == [
        ("lora", "two", "70.0000", "0"), ("neat", "one", "85.0000", "0 1"),
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "text"), [
    (0, "0"), (770, "770"), (18_432, "18.4K"), (147_456, "0.15M"), (294_912, "0.3M"), (22_713_216, "22.7M"),
    (124_000_000, "124M"),
])  # fmt: skip
def test_parameter_counts_in_the_published_style(count, text):
    assert parameter_text(count) == text


def test_published_numbers_load_and_stand_beside_the_measured_ones():
    published = load_published(ROOT / "results" / "published")
    assert len(published) == 3277
    assert len({value.source for value in published}) == 32
    spec = TableSpec(title="G", suite="glue", columns={"rte": "RTE", "stsb": "STS-B"}, published=["red", "lora-t2"])
    measured = runs("red", [0.78], task="rte")
    for made in measured:
        made["names"] |= {"suite": "glue", "model_label": "RoBERTa-base"}
    tables = {table.model: table for table in build_tables(spec, measured, published, "split_validation")}
    markdown = to_markdown(tables["RoBERTa-base"])
    assert "published, not measured here: RED" not in to_markdown(only(runs("neat", [0.8])))
    assert "protocol: split_validation, 5 seeds" in markdown
    assert "RTE, MRPC, STS-B start from the MNLI checkpoint" in markdown
    sources = [row.source for row in tables["RoBERTa-base"].published]
    assert sources == sorted(sources, key=["red", "lora-t2"].index)
    full = next(row for row in tables["RoBERTa-base"].published if row.source == "red" and row.method == "red")
    expected = {(v.task, v.value) for v in published if v.source == "red" and v.method == "red"
                and v.model == "RoBERTa-base" and v.task in ("rte", "stsb")}  # fmt: skip
    assert {(task, full.values[task][0]) for task in ("rte", "stsb")} == expected


def test_a_published_average_over_other_tasks_is_not_shown():
    published = load_published(ROOT / "results" / "published")
    spec = TableSpec(title="G", suite="glue", columns={"rte": "RTE", "qqp": "QQP"}, published=["fourierft-t2", "red"])
    table = build_tables(spec, [], published, "last")[0]
    lines = to_markdown(table).splitlines()
    six_tasks = [line for line in lines if "[fourierft-t2] |" in line]
    eight_tasks = [line for line in lines if "[red] |" in line]
    assert len(six_tasks) > 3 < len(eight_tasks)
    assert all(line.endswith("|  |  |  |") for line in six_tasks)
    assert all(not line.endswith("|  |  |  |") for line in eight_tasks)


def test_no_published_value_is_lost_by_the_shipped_tables():
    """Each value of a source that a table shows, for a task it shows, stands in exactly one row."""
    from neat_bench.config import load_named, names_in
    from neat_bench.results.tables import NOT_THE_COLUMNS_METRIC

    published = load_published(ROOT / "results" / "published")
    shown_sources = set()
    for name in names_in("table"):
        spec = load_named(TableSpec, "table", name)
        shown_sources |= set(spec.published)
        tasks = {spec.published_tasks.get(task, task) for task in spec.columns}
        wanted = [v for v in published if v.suite == spec.suite and v.source in spec.published and v.task in tasks
                  and v.metric not in NOT_THE_COLUMNS_METRIC]  # fmt: skip
        rows = [row for table in build_tables(spec, [], published, "last") for row in table.published]
        found = [value for row in rows for task, value in row.values.items() if task in spec.columns]
        assert sorted((v, s or 0) for v, s in found) == sorted((v.value, v.std or 0) for v in wanted), name
    assert shown_sources == {value.source for value in published}


@pytest.mark.parametrize(("line", "message"), [
    ("glue,M,neat,N,1M,rte,accuracy,high,,,mine", "line 2: value or std is not a number"),
    ("glue,M,neat,N,1M,rte,accuracy,80.0,,,nowhere", "'nowhere' has no line in sources.csv"),
    ("glue,M,neat", "columns expected"),
])  # fmt: skip
def test_bad_published_lines_are_named(tmp_path, line, message):
    (tmp_path / "sources.csv").write_text("source,citation,protocol\nmine,Me,last\n")
    header = "suite,model,method,label,params,task,metric,value,std,quoted,source"
    (tmp_path / "more.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(InputError, match=message):
        load_published(tmp_path)


def make_tables(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "make_tables.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_script_writes_all_three_kinds_and_names_unreadable_records(tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    for name in ("published.csv", "sources.csv"):
        (published / name).write_bytes((ROOT / "results" / "published" / name).read_bytes())
    broken = tmp_path / "runs" / "glue" / "rte" / "m" / "neat" / "abc"
    broken.mkdir(parents=True)
    (broken / "seed0.json").write_text("{")
    done = make_tables("--results", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: skipped:" in done.stderr
    assert "seed0.json" in done.stderr
    for table in ("glue", "commonsense", "math", "vision", "vtab1k"):
        for ending in (".md", ".tex", ".csv"):
            assert (tmp_path / "tables" / f"{table}{ending}").stat().st_size > 500
    assert "<table" in (tmp_path / "report.html").read_text()


def test_the_script_names_an_unknown_table():
    done = make_tables("--table", "gleu")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: unknown table 'gleu'; did you mean 'glue'?"
