"""What differs between two runs: config, versions, result and items."""

from __future__ import annotations

from typing import Any

from neat_bench.results.cells import items_of
from neat_bench.results.report import flattened
from neat_bench.results.significance import mcnemar

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
    shared = mine.index.intersection(yours.index)
    lines = [f"items ({protocol})"]
    if len(shared) < max(len(mine), len(yours)):
        lines.append(f"  {len(shared)} items are reported by both, of {len(mine)} | {len(yours)}")
    mine, yours = mine.loc[shared], yours.loc[shared]
    if len(shared) == 0 or (mine["label"].to_numpy() != yours["label"].to_numpy()).any():
        return [*lines, "  they are not of the same data"]
    a, b = mine["correct"].to_numpy(bool), yours["correct"].to_numpy(bool)
    lines.append(
        f"  both right {(a & b).sum()}, only A {(a & ~b).sum()}, only B {(b & ~a).sum()}, neither {(~a & ~b).sum()}"
    )
    lines.append(f"  McNemar's exact test: p {mcnemar(a, b):.3g}")
    other = shared[(mine["prediction"].to_numpy() != yours["prediction"].to_numpy())]
    for item in other[:MOST_ITEMS]:
        told = mine.loc[item, "prediction"], yours.loc[item, "prediction"]
        lines.append(f"  item {item}, label {mine.loc[item, 'label']}: {told[0]} | {told[1]}")
    if len(other) > MOST_ITEMS:
        lines.append(f"  and {len(other) - MOST_ITEMS} more predictions that differ")
    return lines
