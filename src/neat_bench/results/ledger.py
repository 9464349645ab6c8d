"""The ledger of tuning: what every method had tried on every task, and what it brought."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neat_bench.results.selection import Selection, select
from neat_bench.results.tables import by_column, is_quick_check

COLUMNS = ("suite", "task", "model", "method", "settings_tried", "tuned_on_seeds", "runs", "train_hours", "chosen",
           "validation", "reported", "expected_of_the_best_of_k")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A method's tuning on one task of one model."""

    suite: str
    task: str
    model: str
    method: str
    selection: Selection

    @property
    def name(self) -> str:
        """The method's name."""
        return self.selection.runs[0]["names"]["method"]

    @property
    def hours(self) -> float:
        """Training time of all its runs."""
        runs = [run for variant in self.selection.variants for run in variant.runs]
        return sum(run["cost"]["train_seconds"] for run in runs) / 3600


def make_ledger(records: Iterable[dict[str, Any]], protocol: str) -> list[Entry]:
    """Return an entry for each suite, model, task and method, in that order; quick checks are left out."""
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        if not is_quick_check(record):
            for view in by_column(record):
                names = view["names"]
                key = names["suite"], names["model_label"], names["task"], names["method_label"]
                groups.setdefault(key, []).append(view)
    return [
        Entry(suite, task, model, method, select(found, protocol))
        for (suite, model, task, method), found in sorted(groups.items())
    ]


def _line(entry: Entry) -> list[str]:
    chosen = entry.selection.chosen
    seeds = set(entry.selection.tuned_on) or set(chosen.by_seed)
    reported = {run["seed"] for run in entry.selection.runs}
    runs = sum(len(variant.runs) for variant in entry.selection.variants)
    curve = " ".join(f"{100 * value:.1f}" for value in entry.selection.best_of())
    return [
        entry.suite, entry.task, entry.model, entry.method, str(entry.selection.tried),
        " ".join(map(str, sorted(entry.selection.tuned_on))), str(runs), f"{entry.hours:.3f}",
        entry.selection.setting(chosen), f"{100 * chosen.validation(seeds):.1f}", f"{100 * chosen.score(reported):.1f}",
        curve,
    ]  # fmt: skip


def ledger_csv(entries: list[Entry]) -> str:
    """Return the ledger as CSV; scores in percent."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([COLUMNS, *map(_line, entries)])
    return out.getvalue()


def ledger_markdown(entries: list[Entry]) -> str:
    """Return the ledger as a markdown table with its note."""
    lines = ["## Tuning effort", "", "| " + " | ".join(COLUMNS).replace("_", " ") + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _line(entry)) + " |" for entry in entries]
    lines += [
        "",
        "- Every setting of a method that was run on a task, whatever for; the best by validation is chosen. The last "
        "column: the reported score to expect of the best of 1, 2, ... settings drawn from these.",
        "",
    ]
    return "\n".join(lines)
