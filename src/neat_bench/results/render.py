"""A table as markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neat_bench.results.captions import footer
from neat_bench.results.cells import spread
from neat_bench.results.significance import average_ranks, interval
from neat_bench.results.tables import PublishedRow, Row, Table

MEBI = 2**20


def parameter_text(count: int) -> str:
    """Return a parameter count in the published style: 0.3M, 18.4K, 0; 0.15M, where 0.1M would be off by over 5%."""
    if count >= 100_000:
        digits = 0 if count >= 1e8 else 1 if abs(round(count, -5) - count) <= count / 20 else 2
        return f"{count / 1e6:.{digits}f}M"
    return f"{count / 1e3:.1f}K" if count >= 1000 else str(count)


def score_text(scores: Iterable[float], std: float | None) -> str:
    """Return mean ± standard deviation in percent."""
    values = list(scores)
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if std is None else f"{mean} ± {100 * std:.1f}"


def _over_tasks(table: Table) -> bool:
    """Return whether there are several tasks to count wins and ranks over."""
    return len(table.spec.columns) > 1 and len(table.rows) > 1


def _headings(table: Table) -> list[str]:
    over_tasks = ["W/T/L", "Rank"] if _over_tasks(table) else []
    return ["Method", "Params", "Seeds", *table.spec.all_columns.values(), *over_tasks, "Time (s)", "Memory (MiB)"]


def seeds_text(row: Row) -> str:
    """Return how many seeds the row's cells have."""
    counts = sorted({len(cell.scores) for cell in row.cells.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def facts(row: Row) -> tuple[str, str, str]:
    """Return parameters, mean training time a run and largest peak memory, as texts."""
    cells = list(row.cells.values())
    seconds = sum(cell.seconds for cell in cells) / len(cells)
    memory = max(cell.memory for cell in cells) / MEBI
    return parameter_text(max(cell.parameters for cell in cells)), f"{seconds:.0f}", f"{memory:.0f}"


@dataclass(frozen=True)
class CellText:
    """A measured cell: its text, its rank mark ("best", "second" or ""), its arrow against the baseline, its dagger."""

    text: str = ""
    mark: str = ""
    arrow: str = ""
    dagger: str = ""


ARROWS = {"better": "↑", "worse": "↓"}


def cell_text(table: Table, index: int, column: str) -> CellText:
    """Return what a table shows of a row in a column."""
    row = table.rows[index]
    scores = row.scores(column, table.spec)
    if not scores:
        return CellText()
    compared = table.comparisons.get((index, column))
    collapsed = column in row.cells and row.cells[column].flags
    return CellText(
        score_text(scores.values(), spread(scores.values())),
        table.marks_of[column].get(index, ""),
        ARROWS.get(compared.verdict, "") if compared else "",
        "†" if collapsed else "",
    )


def over_tasks_cells(table: Table, index: int) -> list[str]:
    """Return the row's wins, ties and losses against the baseline and its mean rank, where there are several tasks."""
    if not _over_tasks(table):
        return []
    outcomes = "" if index == table.baseline or table.baseline is None else "/".join(map(str, table.outcomes(index)))
    rows, scores = table.ranked
    ranks = dict(zip(rows, average_ranks(scores), strict=True)) if len(rows) > 1 else {}
    return [outcomes, f"{ranks[index]:.1f}" if index in ranks else ""]


def published_cells(table: Table, row: PublishedRow) -> list[str]:
    """Return the row's values, already in percent as its source prints them."""
    texts = []
    for column in table.columns:
        value, std = row.values.get(column, (None, None))
        texts.append("" if value is None else f"{value:.1f}" if std is None else f"{value:.1f} ± {std:.1f}")
    return [*texts, *([""] * (2 * _over_tasks(table))), "", ""]


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|")


def to_markdown(table: Table) -> str:
    """Return the table with its title and footer as markdown."""
    headings = _headings(table)
    lines = [f"## {table.spec.title}: {table.heading}", ""]
    lines += ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    for index, row in enumerate(table.rows):
        cells = []
        for column in table.columns:
            found = cell_text(table, index, column)
            text = {"best": f"**{found.text}**", "second": f"<u>{found.text}</u>"}.get(found.mark, found.text)
            cells.append(" ".join(filter(None, (text, found.arrow + found.dagger))))
        parameters, seconds, memory = facts(row)
        over_tasks = over_tasks_cells(table, index)
        cells = [_escape_markdown(row.label), parameters, seeds_text(row), *cells, *over_tasks, seconds, memory]
        lines.append("| " + " | ".join(cells) + " |")
    for published in table.published:
        label = _escape_markdown(f"{published.label} [{published.source}]")
        lines.append("| " + " | ".join([label, published.params, "", *published_cells(table, published)]) + " |")
    lines += ["", *(f"- {line}" for line in footer(table)), ""]
    return "\n".join(lines)


def _escape_latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "↑": r"$^{\uparrow}$",
        "↓": r"$^{\downarrow}$",
        "†": r"$^{\dag}$",
    }
    special |= {character: "\\" + character for character in "&%$#_{}"}
    special |= {"<": r"$<$", ">": r"$>$"}
    return "".join(special.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """Return a table environment for a document that loads booktabs and graphicx."""
    headings = _headings(table)
    caption = _escape_latex(f"{table.spec.title}, {table.heading}. " + " ".join(footer(table)))
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        r"\toprule",
        " & ".join(_escape_latex(heading) for heading in headings) + r" \\",
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        cells = []
        for column in table.columns:
            found = cell_text(table, index, column)
            wrap = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(found.mark, "%s")
            cells.append(wrap % _escape_latex(found.text) + _escape_latex(found.arrow + found.dagger))
        parameters, seconds, memory = facts(row)
        texts = [_escape_latex(row.label), parameters, seeds_text(row), *cells, *over_tasks_cells(table, index)]
        lines.append(" & ".join([*texts, seconds, memory]) + r" \\")
    if table.rows and table.published:
        lines.append(r"\midrule")
    for published in table.published:
        texts = [f"{published.label} [{published.source}]", published.params, "", *published_cells(table, published)]
        lines.append(" & ".join(_escape_latex(text) for text in texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
    return "\n".join(lines)


def latex_document(names: list[str]) -> str:
    """Return a document that shows the tables of some files beside it, and compiles as it is."""
    inputs = "\n".join(rf"\input{{{name}}}" for name in names)
    return (
        "\\documentclass{article}\n\\usepackage[margin=2cm]{geometry}\n\\usepackage{booktabs,graphicx}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )


CSV_COLUMNS = ("source", "model", "method", "label", "task", "metric", "mean", "std", "ci_low", "ci_high", "seeds",
               "difference", "p_items", "p_seeds", "p_items_holm", "p_seeds_holm", "p_tasks", "verdict", "detectable",
               "settings_tried", "setting", "parameters", "train_seconds", "peak_memory_bytes", "protocol",
               "flags")  # fmt: skip


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.4f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def to_csv(tables: list[Table]) -> str:
    """Return all cells of the tables in long form; scores in percent, source "measured" or the publication."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for index, row in enumerate(table.rows):
            for column in table.columns:
                scores = row.scores(column, table.spec)
                if not scores:
                    continue
                low, high = interval(list(scores.values())) or (None, None)
                line: dict[str, Any] = {
                    "source": "measured", "model": table.model, "method": row.method, "label": row.label,
                    "task": column, "protocol": table.protocol, "mean": _percent(sum(scores.values()) / len(scores)),
                    "std": _percent(spread(scores.values())), "ci_low": _percent(low), "ci_high": _percent(high),
                    "seeds": " ".join(map(str, sorted(scores))),
                }  # fmt: skip
                if (cell := row.cells.get(column)) is not None:
                    line |= {
                        "metric": cell.metric, "settings_tried": cell.selection.tried,
                        "setting": cell.selection.setting(cell.selection.chosen), "parameters": cell.parameters,
                        "train_seconds": f"{cell.seconds:.2f}", "peak_memory_bytes": cell.memory,
                        "flags": " ".join(f"seed{s}:{flag}" for s, flags in cell.flags.items() for flag in flags),
                    }  # fmt: skip
                if (found := table.comparisons.get((index, column))) is not None:
                    line |= {
                        "difference": _percent(found.difference),
                        "p_items": _p(found.items), "p_seeds": _p(found.seeds),
                        "p_items_holm": _p(found.corrected_items), "p_seeds_holm": _p(found.corrected_seeds),
                        "p_tasks": _p(found.tasks), "verdict": found.verdict, "detectable": _percent(found.detectable),
                    }  # fmt: skip
                writer.writerow(line)
        for published in table.published:
            for task, (value, deviation) in published.values.items():
                writer.writerow({
                    "source": published.source, "model": table.model, "method": published.method,
                    "label": published.label, "task": task, "mean": value, "parameters": published.params,
                    "std": "" if deviation is None else deviation, "protocol": table.sources[published.source][1],
                })  # fmt: skip
    return out.getvalue()
