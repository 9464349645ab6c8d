"""A table as markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from neat_bench.results.statistics import spread
from neat_bench.results.tables import PublishedRow, Row, Table

MEBI = 2**20


def parameter_text(count: int) -> str:
    """Return a parameter count in the published style: 0.3M, 18.4K, 0."""
    if count >= 100_000:
        return f"{count / 1e6:.{1 if count < 1e8 else 0}f}M"
    return f"{count / 1e3:.1f}K" if count >= 1000 else str(count)


def score_text(scores: Iterable[float], std: float | None) -> str:
    """Return mean ± standard deviation in percent."""
    values = list(scores)
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if std is None else f"{mean} ± {100 * std:.1f}"


def _headings(table: Table) -> list[str]:
    return ["Method", "Params", "Seeds", *table.spec.all_columns.values(), "Time (s)", "Memory (MiB)"]


def _seeds(row: Row) -> str:
    counts = sorted({len(cell.scores) for cell in row.cells.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _facts(row: Row) -> tuple[str, str, str]:
    """Return parameters, mean training time a run and largest peak memory, as texts."""
    cells = list(row.cells.values())
    seconds = sum(cell.seconds for cell in cells) / len(cells)
    memory = max(cell.memory for cell in cells) / MEBI
    return parameter_text(max(cell.parameters for cell in cells)), f"{seconds:.0f}", f"{memory:.0f}"


def _published_cells(table: Table, row: PublishedRow) -> list[str]:
    """Return the row's values, already in percent as its source prints them."""
    texts = []
    for column in table.columns:
        value, std = row.values.get(column, (None, None))
        texts.append("" if value is None else f"{value:.1f}" if std is None else f"{value:.1f} ± {std:.1f}")
    return texts


def footer(table: Table) -> list[str]:
    """Return what a reader must know to trust the table, a sentence an item."""
    notes = {
        "split_validation": "a part of the evaluation split (half, unless set) selects the epoch, the rest reports it",
        "best_dev": "OPTIMISTIC: the best epoch on the reported split itself",
        "last": "the last epoch, on the whole evaluation split",
    }
    lines = []
    if table.rows:
        metrics = sorted({f"{table.spec.columns[t]}: {c.metric}" for row in table.rows for t, c in row.cells.items()})
        lines.append(f"Protocol {table.protocol}: {notes[table.protocol]}. Metrics in percent: {'; '.join(metrics)}.")
        lines.append(
            "Mean ± standard deviation over seeds. Bold: the best, where it leads the runner-up beyond noise (paired "
            "t test over shared seeds, p < 0.05). Underlined: second, or both where the lead is within noise."
        )
        lines.append(
            "Params: trainable without the task head, which every method trains. Time: training of one run, "
            "evaluation apart. Memory: peak."
        )
        devices = sorted({device for row in table.rows for cell in row.cells.values() for device in cell.devices})
        conditions = sorted({c for row in table.rows for cell in row.cells.values() for c in cell.conditions})
        conditions = [condition for condition in conditions if not condition.startswith("metric")]
        lines.append(f"Conditions: {'; '.join(conditions)}. Measured on {'; '.join(devices)}.")
        for row in table.rows:
            for task, cell in row.cells.items():
                if cell.flags:
                    lines.append(f"FLAG {row.label}, {table.spec.columns[task]}: {', '.join(sorted(cell.flags))}.")
    lines += table.notes
    if table.left_out:
        lines.append(f"{table.left_out} runs on limited data (quick checks) are left out.")
    for source in dict.fromkeys(row.source for row in table.published):
        citation, protocol = table.sources[source]
        lines.append(f"[{source}] published, not measured here: {citation}; protocol: {protocol}.")
    return lines


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|")


def to_markdown(table: Table) -> str:
    """Return the table with its title and footer as markdown."""
    headings = _headings(table)
    lines = [f"## {table.spec.title}: {table.heading}", ""]
    lines += ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    marks = {column: table.marks(column) for column in table.columns}
    for index, row in enumerate(table.rows):
        cells = []
        for column in table.columns:
            scores = row.scores(column, table.spec)
            text = score_text(scores.values(), spread(scores)) if scores else ""
            text = {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(marks[column].get(index, ""), text)
            cells.append(text)
        parameters, seconds, memory = _facts(row)
        cells = [_escape_markdown(row.label), parameters, _seeds(row), *cells, seconds, memory]
        lines.append("| " + " | ".join(cells) + " |")
    for published in table.published:
        label = _escape_markdown(f"{published.label} [{published.source}]")
        cells = [label, published.params, "", *_published_cells(table, published), "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- {line}" for line in footer(table)), ""]
    return "\n".join(lines)


def _escape_latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
    special |= {character: "\\" + character for character in "&%$#_{}"}
    special |= {"<": r"$<$", ">": r"$>$"}
    return "".join(special.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """Return a table environment for a document that loads booktabs and graphicx."""
    headings = _headings(table)
    marks = {column: table.marks(column) for column in table.columns}
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
            scores = row.scores(column, table.spec)
            text = _escape_latex(score_text(scores.values(), spread(scores))) if scores else ""
            wrap = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(marks[column].get(index, ""), "%s")
            cells.append(wrap % text)
        parameters, seconds, memory = _facts(row)
        lines.append(" & ".join([_escape_latex(row.label), parameters, _seeds(row), *cells, seconds, memory]) + r" \\")
    if table.rows and table.published:
        lines.append(r"\midrule")
    for published in table.published:
        texts = [
            f"{published.label} [{published.source}]",
            published.params,
            "",
            *_published_cells(table, published),
        ]
        lines.append(" & ".join([*(_escape_latex(text) for text in texts), "", ""]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
    return "\n".join(lines)


CSV_COLUMNS = ("source", "model", "method", "label", "task", "metric", "mean", "std", "seeds", "parameters",
               "train_seconds", "peak_memory_bytes", "protocol", "flags")  # fmt: skip


def to_csv(tables: list[Table]) -> str:
    """Return all cells of the tables in long form; scores in percent, source "measured" or the publication."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            for task, cell in row.cells.items():
                std = "" if cell.std is None else f"{100 * cell.std:.4f}"
                seeds = " ".join(map(str, sorted(cell.scores)))
                writer.writerow(["measured", table.model, row.method, row.label, task, cell.metric,
                                 f"{100 * cell.mean:.4f}", std, seeds, cell.parameters, f"{cell.seconds:.2f}",
                                 cell.memory, table.protocol, " ".join(sorted(cell.flags))])  # fmt: skip
        for published in table.published:
            for task, (value, deviation) in published.values.items():
                protocol = table.sources[published.source][1]
                writer.writerow([published.source, table.model, published.method, published.label, task, "",
                                 value, "" if deviation is None else deviation, "", published.params, "", "", protocol,
                                 ""])  # fmt: skip
    return out.getvalue()
