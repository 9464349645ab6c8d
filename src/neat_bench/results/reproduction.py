"""Published against measured: does a published value come out here?"""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass

from neat_bench.results.tables import Table

COLUMNS = ("table", "model", "method", "task", "source", "source_protocol", "published", "published_std", "measured",
           "ci_low", "ci_high", "seeds", "difference", "protocol", "verdict")  # fmt: skip
VERDICTS = ("reproduced", "within noise", "not reproduced", "one seed", "not run")


@dataclass(frozen=True)
class Reproduction:
    """A published value and what was measured for it, in percent.

    verdict: reproduced (the published value lies in our 95% interval), within noise (outside it, yet no further from
    our mean than two standard deviations of a single run, theirs taken as ours where it is not printed), not
    reproduced, one seed (nothing can be said), not run.
    """

    table: str
    model: str
    label: str
    task: str
    source: str
    source_protocol: str
    published: float
    published_std: float | None
    measured: float | None
    interval: tuple[float, float] | None
    seeds: int
    protocol: str
    verdict: str

    @property
    def difference(self) -> float | None:
        """Measured less published."""
        return None if self.measured is None else self.measured - self.published


def verdict_of(published: float, std: float | None, mean: float, own: float | None, low: float, high: float) -> str:
    """Return the verdict on a value, all in percent; own: our standard deviation over seeds, None for one seed.

    A printed value is rounded to a tenth, so an interval is widened by half of that.
    """
    if own is None:
        return "one seed"
    if low - 0.05 <= published <= high + 0.05:
        return "reproduced"
    spread = (own**2 + (own if std is None else std) ** 2) ** 0.5
    return "within noise" if abs(mean - published) <= 2 * spread else "not reproduced"


def reproductions(table: Table) -> list[Reproduction]:
    """Return every published value of a method of ours with what was measured for it on the table's model."""
    measured = {row.method: row for row in reversed(table.rows) if not row.split}
    found = []
    for row in table.published:
        for task, (value, std) in row.values.items():
            if not row.method or task not in table.spec.columns:
                continue
            ours = measured.get(row.method)
            cell = None if ours is None else ours.cells.get(task)
            mean = low = high = None
            verdict = "not run"
            if cell is not None:
                mean = 100 * cell.mean
                own = None if cell.std is None else 100 * cell.std
                low, high = (100 * end for end in cell.interval or (cell.mean, cell.mean))
                verdict = verdict_of(value, std, mean, own, low, high)
            between = None if low is None or high is None else (low, high)
            seeds = 0 if cell is None else len(cell.scores)
            source = row.source, table.sources[row.source][1]
            names = table.spec.title, table.heading, row.label, table.spec.columns[task]
            found.append(Reproduction(*names, *source, value, std, mean, between, seeds, table.protocol, verdict))
    return found


def reproduction_csv(found: list[Reproduction]) -> str:
    """Return every value as CSV, those not run with empty cells."""

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in found:
        low, high = each.interval or (None, None)
        writer.writerow([
            each.table, each.model, each.label, each.task, each.source, each.source_protocol, each.published,
            text(each.published_std), text(each.measured), text(low), text(high), each.seeds or "",
            text(each.difference), each.protocol, each.verdict,
        ])  # fmt: skip
    return out.getvalue()


def reproduction_markdown(found: list[Reproduction]) -> str:
    """Return the values that were measured as a markdown table, and how many of each verdict there are."""
    counts = Counter(each.verdict for each in found)
    lines = ["## Published against measured", "", "; ".join(f"{name}: {counts[name]}" for name in VERDICTS) + ".", ""]
    run = [each for each in found if each.measured is not None]
    if run:
        headings = ["Table", "Model", "Method", "Task", "Published", "Measured", "Difference", "Verdict", "Source"]
        lines += ["| " + " | ".join(headings) + " |", "|---|---|---|---|---:|---:|---:|---|---|"]
    for each in run:
        low, high = each.interval or (0.0, 0.0)
        lines.append(
            f"| {each.table} | {each.model} | {each.label} | {each.task} | {each.published:.1f} | {each.measured:.1f} "
            f"({low:.1f} to {high:.1f}, {each.seeds} seeds) | {each.difference:+.1f} | {each.verdict} | {each.source} "
            f"({each.source_protocol}) |"
        )
    lines += ["", "- " + " ".join((Reproduction.__doc__ or "").split("verdict: ")[1].split()), ""]
    return "\n".join(lines)
