"""What differs between two runs: config, versions, result and items."""

from __future__ import annotations

from typing import Any

import numpy as np

from neat_bench.results.cells import items_of
from neat_bench.results.significance import mcnemar
from neat_bench.results.store import flattened

MOST_ITEMS = 10


def _differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Return a line for each key whose values differ, in order; a missing one is shown as -."""
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return [f"  {key}: {ours.get(key, '-')} | {theirs.get(key, '-')}" for key in keys] or ["  the same"]


def _part(record: dict[str, Any], *names: str) -> dict[str, str]:
    return flattened({name: record[name] for name in names if record.get(name) is not None})


def compare_runs(ours: dict[str, Any], theirs: dict[str, Any], protocol: str) -> str:
    """Return the comparison of two records (with their `path`) as text, A | B on each line."""
    lines = ["config", *_differences(_part(ours, "config", "seed", "seeds"), _part(theirs, "config", "seed", "seeds"))]
    parts = ("environment", "hashes", "model", "data")
    lines += ["code, versions, hardware, data", *_differences(_part(ours, *parts), _part(theirs, *parts))]
    lines += ["parameters", *_differences(_part(ours, "parameters"), _part(theirs, "parameters"))]
    lines += ["cost", *_differences(_part(ours, "cost"), _part(theirs, "cost"))]
    found = flattened(ours["results"]), flattened(theirs["results"])
    lines += ["results", *_differences(*found), *_items(ours, theirs, protocol)]
    return "\n".join(lines)


def _items(ours: dict[str, Any], theirs: dict[str, Any], protocol: str) -> list[str]:
    """Say which reported items the two answer differently."""
    mine, yours = items_of(ours, protocol), items_of(theirs, protocol)
    if mine is None or yours is None:
        return ["items", "  a run has no items beside its record"]
    ours_too, theirs_too = mine.shared(yours)
    count = len(ours_too.id)
    lines = [f"items ({protocol})"]
    if count < max(len(mine.id), len(yours.id)):
        lines.append(f"  {count} items are reported by both, of {len(mine.id)} | {len(yours.id)}")
    if count == 0 or not np.array_equal(ours_too.label, theirs_too.label):
        return [*lines, "  they are not of the same data"]
    a, b = ours_too.correct.astype(bool), theirs_too.correct.astype(bool)
    both, only_a, only_b, neither = (int(each.sum()) for each in (a & b, a & ~b, b & ~a, ~a & ~b))
    lines.append(f"  both right {both}, only A {only_a}, only B {only_b}, neither {neither}")
    lines.append(f"  McNemar's exact test: p {mcnemar(a, b):.3g}")
    other = np.flatnonzero(ours_too.prediction != theirs_too.prediction)
    shown = ours_too.at(other[:MOST_ITEMS]), theirs_too.at(other[:MOST_ITEMS])
    for item, label, one, two in zip(
        shown[0].id, shown[0].label, shown[0].prediction, shown[1].prediction, strict=True
    ):
        lines.append(f"  item {item}, label {label}: {one} | {two}")
    if len(other) > MOST_ITEMS:
        lines.append(f"  and {len(other) - MOST_ITEMS} more predictions that differ")
    return lines
