"""What a table holds: methods as rows, tasks as columns, measured rows first, published rows beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from neat_bench.errors import InputError
from neat_bench.results.cells import Cell, conditions, make_cell
from neat_bench.results.comparisons import Comparison, best_is_beyond_noise, compare
from neat_bench.results.published import Published
from neat_bench.results.selection import select

AVERAGE, AVERAGE_OF_GROUPS = "average", "average_of_groups"
# printed beside a task's own metric by some sources
NOT_THE_COLUMNS_METRIC = ("peak_memory_gib", "train_time_s", "accuracy_mm", "spearman")


@dataclass(kw_only=True)
class TableSpec:
    """A table as configs/table/<name>.yaml describes it.

    columns: task -> heading. groups: heading -> tasks, each followed by its mean; the mean of these means then
    stands beside the average over all tasks. rows: methods in order. published: sources to
    show, in order. others: whether methods that rows leaves out follow. published_tasks: our task -> its name in
    the published files, where that differs. where: dotted record key -> value that a run must have to be in the
    table. split_by: fields of the config, such as method.depth, whose values get rows of their own; all other settings
    of a method are tuning, of which the best by validation is shown. baseline: the method that the others are tested
    against. unequal_tuning: show methods of which more settings were tried beside those of which fewer were.
    """

    title: str
    suite: str
    columns: dict[str, str]
    groups: dict[str, list[str]] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    others: bool = True
    published: list[str] = field(default_factory=list)
    published_tasks: dict[str, str] = field(default_factory=dict)
    where: dict[str, Any] = field(default_factory=dict)
    split_by: list[str] = field(default_factory=list)
    baseline: str = "lora"
    unequal_tuning: bool = False

    def __post_init__(self) -> None:
        grouped = [task for tasks in self.groups.values() for task in tasks]
        if self.groups and sorted(grouped) != sorted(self.columns):
            raise InputError(f"table '{self.title}': the groups do not hold each column once")

    @property
    def all_columns(self) -> dict[str, str]:
        """Every column with its heading: the tasks, the means of their groups, the averages."""
        if not self.groups:
            return self.columns | ({AVERAGE: "Average"} if len(self.columns) > 1 else {})
        found: dict[str, str] = {}
        for group, tasks in self.groups.items():
            found |= {task: self.columns[task] for task in tasks} | {group: group}
        return found | {AVERAGE_OF_GROUPS: "Mean of groups", AVERAGE: "Average"}

    def parts(self, column: str) -> list[str]:
        """Return what the column is the mean of: tasks, or groups; empty for a task."""
        if column == AVERAGE:
            return list(self.columns)
        return list(self.groups) if column == AVERAGE_OF_GROUPS else self.groups.get(column, [])


@dataclass(frozen=True)
class Row:
    """A measured row: a method, or one of the values of it that `split_by` names (dotted key -> value)."""

    method: str
    label: str
    split: dict[str, Any]
    cells: dict[str, Cell]

    def scores(self, column: str, spec: TableSpec) -> dict[int, float]:
        """Return the scores by seed of a task, or of a mean for each seed that has all its parts."""
        if column in self.cells:
            return self.cells[column].scores
        parts = [self.scores(part, spec) for part in spec.parts(column)]
        seeds = set.intersection(*map(set, parts)) if parts else set()
        return {seed: float(np.mean([scores[seed] for scores in parts])) for seed in sorted(seeds)}

    def means(self, tasks: list[str]) -> list[float]:
        """Return the row's mean of each task, empty where one is missing."""
        return [self.cells[task].mean for task in tasks] if set(tasks) <= set(self.cells) else []


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table: values in percent, by column."""

    label: str
    method: str
    params: str
    source: str
    values: dict[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Table:
    """One model's table, ready to be rendered.

    trained_on: the training file, where one run fills several columns; notes: what the footer warns of.
    """

    spec: TableSpec
    model: str
    trained_on: str
    protocol: str
    rows: list[Row]
    published: list[PublishedRow]
    sources: dict[str, tuple[str, str]]  # citation, protocol
    left_out: int
    notes: list[str] = field(default_factory=list)

    @property
    def heading(self) -> str:
        """The model, and what it was trained on where that is not the column itself."""
        return f"{self.model}, trained on {self.trained_on}" if self.trained_on else self.model

    @property
    def columns(self) -> list[str]:
        """The tasks and the means over them, in order."""
        return list(self.spec.all_columns)

    def marks(self, column: str) -> dict[int, str]:
        """Return row index -> "best" or "second" for a column.

        The best mean is "best" only where it differs from every other row beyond the noise of their shared seeds;
        else it and the runner-up are "second", so that nobody wins inside the noise.
        """
        scored = {i: scores for i, row in enumerate(self.rows) if (scores := row.scores(column, self.spec))}
        means = {i: float(np.mean(list(scores.values()))) for i, scores in scored.items()}
        ranked = sorted(means, key=lambda i: -means[i])
        if len(ranked) < 2:
            return {}
        first, second = ranked[:2]
        tied = [i for i in ranked[1:] if math.isclose(means[i], means[second])]
        clear = best_is_beyond_noise([scored[i] for i in ranked])
        return {first: "best" if clear else "second"} | dict.fromkeys(tied, "second")

    @cached_property
    def marks_of(self) -> dict[str, dict[int, str]]:
        """`marks` of every column."""
        return {column: self.marks(column) for column in self.columns}

    @cached_property
    def baseline(self) -> int | None:
        """The row that the others are tested against, None where it was not run."""
        return next((i for i, row in enumerate(self.rows) if row.method == self.spec.baseline), None)

    @cached_property
    def comparisons(self) -> dict[tuple[int, str], Comparison]:
        """The tests of every row against the baseline, by row index and column; corrected column by column."""
        if self.baseline is None:
            return {}
        return {(index, column): found for column in self.columns for index, found in self._compared(column).items()}

    def _compared(self, column: str) -> dict[int, Comparison]:
        assert self.baseline is not None
        tasks = list(self.spec.columns) if column == AVERAGE else []
        sides = {
            index: (scores, row.cells.get(column), row.means(tasks))
            for index, row in enumerate(self.rows) if (scores := row.scores(column, self.spec))
        }  # fmt: skip
        base = sides.pop(self.baseline, None)
        return {} if base is None else compare(base, sides, self.protocol)

    def outcomes(self, index: int) -> tuple[int, int, int]:
        """Return in how many tasks a row is better than the baseline, not told apart from it, and worse."""
        found = [
            self.comparisons[index, task].verdict for task in self.spec.columns if (index, task) in self.comparisons
        ]
        return found.count("better"), found.count("same"), found.count("worse")

    @cached_property
    def ranked(self) -> tuple[list[int], np.ndarray]:
        """The rows that were run on every task, and their mean scores, tasks x rows."""
        whole = [i for i, row in enumerate(self.rows) if set(row.cells) == set(self.spec.columns)]
        return whole, np.array([[self.rows[i].cells[task].mean for i in whole] for task in self.spec.columns])


def _value(record: dict[str, Any], dotted: str) -> Any:
    for key in dotted.split("."):
        record = record.get(key, {}) if isinstance(record, dict) else {}
    return record


def by_column(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a record for each test set of a run that has several (names.trained_on says of which), else itself."""
    views = []
    for name, results in record.get("results_by_set", {}).items():
        flags = [flag.partition(": ")[2] for flag in record["flags"] if flag.startswith(f"{name}: ")]
        trained_on = record["config"]["dataset"].get("label_name") or record["names"]["task"]
        names = record["names"] | {"task": name, "trained_on": trained_on}
        contamination = {key: found for key, found in record.get("contamination", {}).items() if key == name}
        views.append(record | {"names": names, "results": results, "flags": flags, "contamination": contamination})
    return views or [record]


def _contamination_notes(records: list[dict[str, Any]], columns: dict[str, str]) -> list[str]:
    """Return one line for each column whose test items the training rows hold."""
    lines = []
    for record in records:
        for found in record.get("contamination", {}).values():
            if found["exact"] or found["ngram"]:
                lines.append(
                    f"CONTAMINATION {columns[record['names']['task']]}: of {found['items']} test items the training "
                    f"rows hold {found['exact']} whole, and {found['ngram']} share 13 words in a row with one."
                )
    return list(dict.fromkeys(lines))


def is_quick_check(record: dict[str, Any]) -> bool:
    """Return whether a run was on limited data."""
    trainer = record["config"]["trainer"]
    return any(trainer.get(key) is not None for key in ("limit_train", "limit_evaluation"))


def _check_comparable(records: list[dict[str, Any]], column: str) -> None:
    """Raise InputError where runs of one column differ in something that moves the number by itself."""
    described = [{"data": record["hashes"]["data"]} | conditions(record) for record in records]
    for name in sorted(set().union(*described)):
        found = sorted({str(each.get(name)) for each in described})
        if len(found) > 1:
            raise InputError(
                f"table column {column}: runs differ in {name} ({', '.join(found)}) and cannot share a table; "
                "choose with --where, such as --where hashes.data=... or --where config.trainer.precision=fp32"
            )


def _group(record: dict[str, Any]) -> tuple[str, str]:
    return record["names"]["model_label"], record["names"].get("trained_on", "")


def build_tables(
    spec: TableSpec, records: list[dict[str, Any]], published: list[Published], protocol: str
) -> list[Table]:
    """Return one table for each model (and training file) that has runs or published rows of this suite.

    Runs on limited data (quick checks) are left out and counted. Raises InputError where runs of one
    column are not comparable.
    """
    of_suite = [
        view
        for record in records
        if record["names"]["suite"] == spec.suite
        and (spec.others or record["names"]["method"] in spec.rows)
        and all(str(_value(record, key)) == str(value) for key, value in spec.where.items())
        for view in by_column(record)
        if view["names"]["task"] in spec.columns
    ]
    chosen = [value for value in published if value.suite == spec.suite and value.source in spec.published]
    groups = sorted({_group(record) for record in of_suite})
    groups += [(model, "") for model in sorted({value.model for value in chosen} - {model for model, _ in groups})]
    tables = []
    for model, trained_on in groups:
        of_group = [record for record in of_suite if _group(record) == (model, trained_on)]
        counted = [record for record in of_group if not is_quick_check(record)]
        for task in spec.columns:
            _check_comparable([record for record in counted if record["names"]["task"] == task], f"{model}, {task}")
        rows = _rows(spec, counted, protocol)
        _check_tuning(rows, spec, model)
        beside = _published_rows(spec, [value for value in chosen if value.model == model])
        if not (rows or beside):
            continue
        sources = {value.source: (value.citation, value.protocol) for value in chosen if value.model == model}
        left_out = len({id(record["config"]) for record in of_group}) - len(
            {id(record["config"]) for record in counted}
        )
        notes = _contamination_notes(counted, spec.columns)
        tables.append(Table(spec, model, trained_on, protocol, rows, beside, sources, left_out, notes))
    return tables


def _rows(spec: TableSpec, records: list[dict[str, Any]], protocol: str) -> list[Row]:
    """Group records into rows, in the order of spec.rows, each cell with its method's best setting."""
    keys = [*spec.split_by, "budget"]
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    splits: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        split = {key: _value(record["config"], key) for key in keys}
        split = {key: value for key, value in split.items() if value not in (None, {})}
        key = record["names"]["method"], repr(sorted(split.items()))
        splits[key] = split
        groups.setdefault(key, {}).setdefault(record["names"]["task"], []).append(record)
    rank = {method: index for index, method in enumerate(spec.rows)}

    def order(key: tuple[str, str]) -> tuple:
        values = [(isinstance(value, str), value if isinstance(value, (int, float, str)) else repr(value))
                  for value in splits[key].values()]  # fmt: skip
        return rank.get(key[0], len(rank)), key[0], values

    rows = []
    for key in sorted(groups, key=order):
        by_task = groups[key]
        cells = {task: make_cell(select(by_task[task], protocol)) for task in spec.columns if task in by_task}
        label = next(iter(by_task.values()))[0]["names"]["method_label"]
        varied = [other for other in splits if other[0] == key[0]]
        told = [f"{name.rpartition('.')[2]} {_text(value)}" for name, value in splits[key].items()
                if any(splits[other].get(name) != value for other in varied) or name == "budget"]  # fmt: skip
        rows.append(Row(key[0], f"{label} ({', '.join(told)})" if told else label, splits[key], cells))
    return rows


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_tuning(rows: list[Row], spec: TableSpec, where: str) -> None:
    """Raise InputError where some methods of a column had more settings tried than others; untuned ones have none."""
    for task in spec.columns:
        tried = {row.label: row.cells[task].selection.tried for row in rows
                 if task in row.cells and row.cells[task].trains}  # fmt: skip
        if len(set(tried.values())) > 1 and not spec.unequal_tuning:
            told = ", ".join(f"{label} {count}" for label, count in sorted(tried.items(), key=lambda each: -each[1]))
            raise InputError(
                f"table '{spec.title}', {where}, {spec.columns[task]}: methods had unequal numbers of settings tried "
                f"({told}): try as many for each, or show them all the same with --unequal-tuning"
            )


def _published_rows(spec: TableSpec, values: list[Published]) -> list[PublishedRow]:
    """Group published values into rows, by source and label, in the order of spec.published."""
    averages = {AVERAGE, AVERAGE_OF_GROUPS} & set(spec.all_columns)
    names = {spec.published_tasks.get(task, task): task for task in spec.columns} | {name: name for name in averages}
    rows: dict[tuple[str, str, str, str], list[dict[str, tuple[float, float | None]]]] = {}
    for value in values:
        if value.task not in names or value.metric in NOT_THE_COLUMNS_METRIC:
            continue
        column = names[value.task]
        # some tables print two rows under one label: a cell that is taken opens the next row
        same_name = rows.setdefault((value.source, value.label, value.method, value.params), [{}])
        if column in same_name[-1]:
            same_name.append({})
        same_name[-1][column] = (value.value, value.std)

    def comparable(cells: dict[str, tuple[float, float | None]]) -> dict[str, tuple[float, float | None]]:
        """Leave out an average that is over other sets than the table's columns."""
        return cells if set(spec.columns) <= set(cells) else {k: v for k, v in cells.items() if k not in averages}

    found = [
        PublishedRow(label, method, params, source, comparable(cells))
        for (source, label, method, params), same_name in rows.items()
        for cells in same_name
        if set(cells) & set(spec.columns)
    ]
    return sorted(found, key=lambda row: spec.published.index(row.source))
