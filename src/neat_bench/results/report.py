"""The report: every table, figure and cell of a results folder in one HTML file that opens without a network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from neat_bench.results.captions import footer
from neat_bench.results.cells import Cell, items_of
from neat_bench.results.ledger import Entry
from neat_bench.results.render import cell_text, facts, over_tasks_cells, parameter_text, published_cells, seeds_text
from neat_bench.results.reproduction import Reproduction
from neat_bench.results.store import flattened
from neat_bench.results.tables import Table

TEMPLATE = Path(__file__).with_name("report.html.j2")
WRONG_ITEMS = 12  # shown of a cell, of its first seed


@dataclass(frozen=True)
class Drawn:
    """A figure as it was written: its file's name, its title, and its SVG."""

    name: str
    title: str
    svg: str

    @property
    def wide(self) -> bool:
        """Whether it has panels side by side."""
        return "_learning" in self.name or self.name.startswith("tuning_")

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


def _common(configs: list[dict[str, str]]) -> dict[str, str]:
    """Return what all configs say alike."""
    return {key: value for key, value in configs[0].items() if all(each.get(key) == value for each in configs[1:])}


def _wrong(cell: Cell, protocol: str) -> dict[str, Any] | None:
    """Return how many reported items of the first seed there are, how many are right, and some that are not."""
    items = items_of(cell.selection.runs[0], protocol)
    if items is None:
        return None
    wrong = items.at(np.flatnonzero(~items.correct.astype(bool))[:WRONG_ITEMS])
    return {
        "seed": cell.selection.runs[0]["seed"],
        "items": len(items.id),
        "right": int(items.correct.sum()),
        "wrong": [[str(each) for each in line] for line in zip(wrong.id, wrong.label, wrong.prediction, strict=True)],
    }


def _cell(cell: Cell, config: dict[str, str], protocol: str) -> dict[str, Any]:
    """Return what a cell opens: its runs, the settings tried for it, what its config has of its own, its items."""
    selection = cell.selection
    tuned = set(selection.tuned_on)
    between = cell.interval
    return {
        "metric": cell.metric,
        "interval": None if between is None else [round(100 * end, 2) for end in between],
        "setting": selection.setting(selection.chosen),
        "tuned_on": sorted(tuned),
        "tried": [
            [
                selection.setting(each),
                round(100 * each.validation(tuned or set(each.by_seed)), 2),
                sorted(each.by_seed),
            ]
            for each in selection.variants
        ],
        "runs": [
            {
                "seed": run["seed"],
                "score": round(100 * run["results"][protocol][cell.metric], 2),
                "epoch": run["results"][protocol]["epoch"],
                "step": run["results"][protocol]["step"],
                "seconds": round(run["cost"]["train_seconds"], 1),
                "device": run["environment"]["device"],
                "commit": (run["environment"]["code"]["commit"] or "")[:10],
                "flags": run["flags"],
            }
            for run in selection.runs
        ],
        "config": config,
        "items": _wrong(cell, protocol),
    }


def _table(name: str, table: Table, figures: Iterable[Drawn]) -> dict[str, Any]:
    """Return a table as the template shows it."""
    configs = {
        (index, task): flattened(cell.selection.runs[0]["config"])
        for index, row in enumerate(table.rows) for task, cell in row.cells.items()
    }  # fmt: skip
    common = _common(list(configs.values())) if configs else {}
    opened: dict[str, Any] = {}
    rows = []
    for index, row in enumerate(table.rows):
        cells = []
        for column, heading in table.spec.all_columns.items():
            text, key = cell_text(table, index, column), None
            if (cell := row.cells.get(column)) is not None:
                key = f"{name}-{len(opened)}"
                own = {k: v for k, v in configs[index, column].items() if common.get(k) != v}
                opened[key] = {"title": f"{row.label}, {heading}"} | _cell(cell, own, table.protocol)
            cells.append({"text": text, "key": key})
        parameters, seconds, memory = facts(row)
        count = max(cell.parameters for cell in row.cells.values())
        rows.append({
            "label": row.label, "parameters": parameters, "count": count, "seeds": seeds_text(row), "cells": cells,
            "over_tasks": over_tasks_cells(table, index), "seconds": seconds, "memory": memory,
        })  # fmt: skip
    published = [
        {"label": f"{row.label} [{row.source}]", "parameters": row.params, "cells": published_cells(table, row)}
        for row in table.published
    ]
    return {
        "id": name, "title": table.spec.title, "heading": table.heading, "notes": footer(table),
        "columns": list(table.spec.all_columns.values()), "over_tasks": bool(rows and rows[0]["over_tasks"]),
        "rows": rows, "published": published, "common": common, "opened": opened, "figures": list(figures),
    }  # fmt: skip


def render_report(
    tables: list[tuple[str, Table, list[Drawn]]],
    tuning: list[Drawn],
    ledger: list[Entry],
    reproduced: list[Reproduction],
    refused: list[str],
) -> str:
    """Return the report as HTML; `tables` are (name, table, figures), `refused` says which tables were not made."""
    shown = [_table(f"t{index}-{name}", table, drawn) for index, (name, table, drawn) in enumerate(tables)]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    opened = {key: value for table in shown for key, value in table["opened"].items()}
    return environment.from_string(TEMPLATE.read_text()).render(
        tables=shown,
        tuning=tuning,
        ledger=ledger,
        reproduced=[each for each in reproduced if each.measured is not None],
        not_run=sum(each.measured is None for each in reproduced),
        refused=refused,
        parameter_text=parameter_text,
        # in a script element only "</" could end it
        opened=jinja2.filters.Markup(json.dumps(opened).replace("</", "<\\/")),
    )
