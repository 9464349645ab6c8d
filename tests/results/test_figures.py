"""Figures: whatever the number of methods and the length of their labels, nothing is cut off."""

import itertools

import pytest
from made import runs

from neat_bench.results.figures import figures_of, tuning_figures
from neat_bench.results.ledger import make_ledger
from neat_bench.results.tables import TableSpec, build_tables

ACTIVATIONS = ("relu", "leaky_relu", "gelu", "tanh", "sigmoid", "sin", "identity")


def records(methods, tasks=("one",), settings=1):
    return [
        one for index, method in enumerate(methods) for task in tasks for lr in range(settings)
        for one in runs(method, [0.7 + 0.01 * index, 0.71 + 0.01 * index], task, trainable=70_000 + 500 * index,
                        config=f"{method}{lr}", overrides=[f"optimizer.lr={lr}"])
    ]  # fmt: skip


def split(depths):
    return [
        one for depth in depths for activation in ACTIVATIONS
        for one in runs("neat", [0.8, 0.81], config=f"{depth}{activation}",
                        overrides=[f"method.depth={depth}", f"method.activation={activation}"])
    ]  # fmt: skip


def misplaced(figure):
    """Return what of a figure's words lies outside its canvas, and what of its panels' under its legend."""
    figure.draw_without_rendering()
    words = [*figure.texts, *figure.legends]
    for axes in figure.axes:
        words += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    edges = figure.bbox.padded(1)
    found = [(word, word.get_window_extent()) for word in words]
    legends = [legend.get_window_extent() for legend in figure.legends]
    covered = [
        axes for axes in figure.axes if axes.get_visible() for box in legends if axes.get_tightbbox().overlaps(box)
    ]
    return covered + [word for word, box in found if box.width and not (
        edges.x0 <= box.x0 and box.x1 <= edges.x1 and edges.y0 <= box.y0 and box.y1 <= edges.y1)]  # fmt: skip


@pytest.mark.parametrize(("made", "split_by", "tasks"), [
    (records(["lora", "neat"]), [], ["one"]),
    (records([f"a_method_with_a_name_{k}" for k in range(14)]), [], ["one"]),
    (records([f"method{k}" for k in range(20)]), [], ["one"]),
    (records([f"method{k}" for k in range(9)], ["one", "two", "three", "four", "five"]), [],
     ["one", "two", "three", "four", "five"]),
    (split([2, 4]), ["method.depth", "method.activation"], ["one"]),
])  # fmt: skip
def test_no_word_of_a_tables_figures_is_cut_off(made, split_by, tasks):
    spec = TableSpec(title="A title of some length, so that it takes two lines above a picture of this size", suite="s",
                     columns={task: task.upper() for task in tasks}, split_by=split_by)  # fmt: skip
    (table,) = build_tables(spec, made, [], "split_validation")
    drawn = {name: figure for name, _, figure in figures_of("t", table)}
    assert "t_m_parameters" in drawn
    for name, figure in drawn.items():
        assert not misplaced(figure), name


def test_of_a_table_with_one_task_run_so_far_the_figures_show_that_task():
    spec = TableSpec(title="T", suite="s", columns={"one": "ONE", "two": "TWO"})
    (table,) = build_tables(spec, records(["lora", "neat"], ["two"]), [], "split_validation")
    drawn = {name: figure for name, _, figure in figures_of("t", table)}
    assert drawn["t_m_parameters"].axes[0].get_ylabel().startswith("TWO")
    (table,) = build_tables(spec, records(["lora", "neat"], ["one", "two"]), [], "split_validation")
    drawn = {name: figure for name, _, figure in figures_of("t", table)}
    assert drawn["t_m_parameters"].axes[0].get_ylabel().startswith("Average")


def test_of_a_table_with_some_tasks_run_so_far_each_has_figures_of_its_own():
    spec = TableSpec(title="T", suite="s", columns={"one": "ONE", "two": "TWO", "three": "THREE"})
    made = records(["lora", "neat"], ["one"]) + runs("lora", [0.6, 0.7], "two") + runs("neat", [0.6, 0.8], "two")
    for each in made:
        each["cost"] |= {"train_seconds": 5.0 if each["names"]["task"] == "one" else 50.0}
    (table,) = build_tables(spec, made, [], "split_validation")
    drawn = {name: figure for name, _, figure in figures_of("t", table)}
    kinds = ("parameters", "time", "memory")
    assert set(drawn) == {f"t_m_{kind}_{task}" for kind in kinds for task in ("one", "two")} | {"t_m_learning"}
    for task, seconds in (("one", 5.0), ("two", 50.0)):
        axes = drawn[f"t_m_time_{task}"].axes[0]
        assert axes.get_ylabel().startswith(task.upper())
        assert {float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() in ("o", "s")} == {seconds}


def test_the_axis_says_when_marks_stand_beside_their_true_costs():
    spec = TableSpec(title="T", suite="s", columns={"one": "ONE"})
    said = {}
    for trainable in (70_500, 140_000):
        made = records(["lora"]) + runs("neat", [0.8, 0.81], trainable=trainable)
        (table,) = build_tables(spec, made, [], "split_validation")
        drawn = {name: figure for name, _, figure in figures_of("t", table)}
        said[trainable] = "side by side" in drawn["t_m_parameters"].axes[0].get_xlabel()
    assert said == {70_500: True, 140_000: False}


def test_no_word_of_the_tuning_curves_is_cut_off():
    entries = make_ledger(records([f"a_method_with_a_name_{k}" for k in range(12)], settings=30), "split_validation")
    ((_, _, figure),) = tuning_figures(entries)
    assert not misplaced(figure)
    ticks = [text.get_window_extent() for text in figure.axes[0].get_xticklabels() if text.get_text()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(ticks))
