"""What a reader must know to trust a table: protocol, selection, tests, conditions, sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from neat_bench.results.cells import Cell
from neat_bench.results.significance import LEVEL, critical_difference, friedman, holm
from neat_bench.results.tables import AVERAGE, Table

PROTOCOLS = {
    "best_dev": "OPTIMISTIC: the best epoch on the reported split itself",
    "last": "the last epoch, on the whole reported split",
}


def footer(table: Table) -> list[str]:
    """Return the notes of a table, a sentence or two an item."""
    lines = [*_measured(table), *table.notes]
    if table.left_out:
        lines.append(f"{table.left_out} runs on limited data (quick checks) are left out.")
    for source in dict.fromkeys(row.source for row in table.published):
        citation, protocol = table.sources[source]
        lines.append(f"[{source}] published, not measured here: {citation}; protocol: {protocol}.")
    return lines


def _measured(table: Table) -> list[str]:
    if not table.rows:
        return []
    metrics = sorted({f"{table.spec.columns[t]}: {c.metric}" for row in table.rows for t, c in row.cells.items()})
    lines = [
        f"Protocol {table.protocol}: {_rule(table)}. Metrics in percent: {'; '.join(metrics)}.",
        _tuning(table),
        "Mean ± standard deviation over seeds. Bold: the best, where it differs from every other row (paired t tests "
        f"over shared seeds, Holm-corrected, p < {LEVEL}). Underlined: second, or the first two where the lead is "
        "within noise.",
        *_tests(table),
        "Params: trainable without the task head, which every method trains. Time: training of one run, evaluation "
        "apart. Memory: peak.",
    ]
    cells = [cell for row in table.rows for cell in row.cells.values()]
    devices = sorted({device for cell in cells for device in cell.devices})
    lines.append(f"Conditions: {_conditions(table)}. Measured on {'; '.join(devices)}.")
    for row in table.rows:
        for task, cell in row.cells.items():
            if cell.flags:
                told = "; ".join(f"seed {seed} {', '.join(flags)}" for seed, flags in sorted(cell.flags.items()))
                lines.append(
                    f"FLAG † {row.label}, {table.spec.columns[task]}: {len(cell.flags)} of {len(cell.scores)} runs "
                    f"collapsed ({told}); the mean holds them."
                )
    return lines


def _columns(table: Table, tell: Callable[[Cell], Iterable[str]]) -> dict[str, list[str]]:
    """Return what `tell` says of the cells of each column, with the headings of the columns it holds for."""
    columns: dict[str, list[str]] = {}
    for task, heading in table.spec.columns.items():
        for each in sorted({each for row in table.rows if task in row.cells for each in tell(row.cells[task])}):
            columns.setdefault(each, []).append(heading)
    return columns


def _conditions(table: Table) -> str:
    """Say what moves a number by itself, and in which columns where not in all."""
    told = _columns(table, lambda cell: (each for each in cell.conditions if not each.startswith("metric")))
    shown = {heading for headings in told.values() for heading in headings}
    return "; ".join(
        each if len(headings) == len(shown) else f"{each} ({', '.join(headings)})"
        for each, headings in sorted(told.items())
    )


def _rule(table: Table) -> str:
    """Say which epoch is reported, on which rows; a column at a time where they differ in it."""
    if table.protocol in PROTOCOLS:
        return PROTOCOLS[table.protocol]
    columns = _columns(table, lambda cell: [_split_validation(cell)])
    if len(columns) == 1:
        return next(iter(columns))
    return "; ".join(f"{', '.join(headings)}: {rule}" for rule, headings in columns.items())


def _split_validation(cell: Cell) -> str:
    """Say which rows select the epoch and which report it, as `DatasetSpec` divides them."""
    dataset = cell.selection.runs[0]["config"]["dataset"]
    if dataset.get("test_sets"):
        reporting = "the test sets report it"
    elif dataset.get("test_split"):
        reporting = f"the {dataset['test_split']} split reports it"
    else:
        return "a part of the evaluation split (half, unless set) selects the epoch, the rest reports it"
    if dataset["evaluation_split"] is None:
        return f"rows held out of the training split select the epoch, {reporting}"
    return f"the {dataset['evaluation_split']} split selects the epoch, {reporting}"


def _tuning(table: Table) -> str:
    """Say how many settings were tried and what was reported after that."""
    cells = [cell for row in table.rows for cell in row.cells.values() if cell.trains]
    tried = sorted({cell.selection.tried for cell in cells})
    if tried in ([], [1]):
        return "One setting was tried of every method."
    seeds = sorted({seed for cell in cells for seed in cell.selection.tuned_on})
    chosen = f"chosen by validation score over {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    if not seeds:
        chosen = "chosen by validation score, each over its own seeds (they share none)"
    new = all(not set(cell.scores) & cell.selection.tuned_on for cell in cells)
    reported = "new seeds are reported" if new else "those that chose are reported where there are no new ones"
    if len(tried) == 1:
        who = "every method" if len(cells) == sum(len(row.cells) for row in table.rows) else "every method that trains"
        return f"Of {who} {tried[0]} settings were tried in each column, {chosen}; {reported}."
    each = {row.label: max(cell.selection.tried for cell in row.cells.values()) for row in table.rows if row.cells}
    told = ", ".join(f"{label} {count}" for label, count in each.items())
    return f"UNEQUAL TUNING, not a fair comparison: settings tried: {told}; {chosen}; {reported}."


def _tests(table: Table) -> list[str]:
    """Say which tests stand behind the arrows, and what the data could have shown."""
    if table.baseline is None or not table.comparisons:
        return []
    base = table.rows[table.baseline].label
    found = list(table.comparisons.values())
    by = "paired t over shared seeds"
    if all(each.corrected_seeds is None for each in found):
        by = "over the same test items (exact McNemar for accuracy, paired bootstrap for correlations and F1)"
    lines = [
        f"↑ ↓: better or worse than {base}, {by}, Holm-corrected over the column, p < {LEVEL}; no arrow: not told "
        "apart, or untested."
    ]
    shown = []
    for column, heading in table.spec.all_columns.items():
        known = [each.detectable for (_, c), each in table.comparisons.items() if c == column and each.detectable]
        if known:
            shown.append(f"{heading} {100 * median(known):.1f}")
    if shown:
        lines.append(
            f"Smallest difference from {base} that these seeds could have shown at 80% power, in points (median over "
            f"methods): {'; '.join(shown)}."
        )
    if len(table.spec.columns) > 1 and len(table.rows) > 1:
        lines.append(f"W/T/L: tasks better than {base}, not told apart from it, worse. Rank: mean rank over tasks.")
        across = {i: each.tasks for (i, column), each in table.comparisons.items() if column == AVERAGE and each.tasks}
        if across:
            corrected = zip(across, holm(list(across.values())), strict=True)
            told = ", ".join(f"{table.rows[index].label} {p:.3g}" for index, p in corrected)
            lines.append(f"Wilcoxon's signed-rank test over tasks against {base}, Holm-corrected p: {told}.")
        rows, scores = table.ranked
        p = friedman(scores) if len(rows) > 2 else None
        if p is not None:
            lines.append(
                f"Friedman's test over tasks: p {p:.3g}; mean ranks must differ by "
                f"{critical_difference(len(scores), len(rows)):.2f} (Nemenyi, 0.05)."
            )
    return lines
