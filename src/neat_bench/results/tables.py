"""What a table holds: methods as rows, tasks as columns, measured rows first, published rows beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neat_bench.errors import InputError
from neat_bench.results.published import Published
from neat_bench.results.statistics import Cell, conditions, leads, make_cell, variant_of

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
    table.
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
    """A measured row: a method, or a variant of it that the command line set apart."""

    method: str
    label: str
    cells: dict[str, Cell]

    def scores(self, column: str, spec: TableSpec) -> dict[int, float]:
        """Return the scores by seed of a task, or of a mean for each seed that has all its parts."""
        if column in self.cells:
            return self.cells[column].scores
        parts = [self.scores(part, spec) for part in spec.parts(column)]
        seeds = set.intersection(*map(set, parts)) if parts else set()
        return {seed: float(np.mean([scores[seed] for scores in parts])) for seed in sorted(seeds)}


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

        The best mean is "best" only where it leads the runner-up beyond the noise of their shared seeds; else
        both are "second", so that nobody wins inside the noise.
        """
        scored = {i: scores for i, row in enumerate(self.rows) if (scores := row.scores(column, self.spec))}
        means = {i: float(np.mean(list(scores.values()))) for i, scores in scored.items()}
        ranked = sorted(means, key=lambda i: -means[i])
        if len(ranked) < 2:
            return {}
        first, second = ranked[:2]
        tied = [i for i in ranked[1:] if math.isclose(means[i], means[second])]
        return {first: "best" if leads(scored[first], scored[second]) else "second"} | dict.fromkeys(tied, "second")


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


def _is_quick_check(record: dict[str, Any]) -> bool:
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
        counted = [record for record in of_group if not _is_quick_check(record)]
        for task in spec.columns:
            _check_comparable([record for record in counted if record["names"]["task"] == task], f"{model}, {task}")
        rows = _rows(spec, counted, protocol)
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
    """Group records into rows, in the order of spec.rows."""
    groups: dict[tuple[str, str], dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for record in records:
        key = (record["names"]["method"], variant_of(record))
        by_config = groups.setdefault(key, {}).setdefault(record["names"]["task"], {})
        by_config.setdefault(record["hashes"]["config"], []).append(record)
    rank = {method: index for index, method in enumerate(spec.rows)}
    rows = []
    for method, variant in sorted(groups, key=lambda key: (rank.get(key[0], len(rank)), key)):
        by_task = groups[method, variant]
        for index in range(max(len(configs) for configs in by_task.values())):
            # one override text can stand for several configs once a default has changed: each gets a row
            chosen = {task: sorted(configs.items())[index] for task, configs in by_task.items() if index < len(configs)}
            label = next(iter(chosen.values()))[1][0]["names"]["method_label"]
            if variant:
                label += f" ({variant})"
            if max(len(configs) for configs in by_task.values()) > 1:
                label += f" [{'/'.join(sorted({config[:6] for config, _ in chosen.values()}))}]"
            rows.append(Row(method, label, {task: make_cell(runs, protocol) for task, (_, runs) in chosen.items()}))
    return rows


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
