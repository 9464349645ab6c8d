"""Figures of tables: what a method costs and what it brings, how it learns, how methods rank.

Okabe and Ito's colours, which the colour-blind tell apart, each with a marker and a line style of its own, so that a
print in grey reads as well.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import EngFormatter, MaxNLocator, SymmetricalLogLocator
from matplotlib.transforms import ScaledTranslation, Transform

from neat_bench.results.cells import Cell
from neat_bench.results.ledger import Entry
from neat_bench.results.render import MEBI
from neat_bench.results.significance import average_ranks, critical_difference, interval
from neat_bench.results.tables import AVERAGE, Row, Table

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X<>pd"
# always the same look
CORE = ("neat", "lora", "dora", "full", "red", "linear_probe", "neat_s", "bitfit", "pissa", "gift", "untuned")
LINES = ("-", "--", "-.", ":")
MOST_LABELS = 14  # beyond these there is no legend, and only the front and the baseline carry a name
MOST_BANDS = 6  # beyond these the bands of learning curves hide each other
NEAR, APART = 0.05, 6.0  # costs that differ by less (a share) stand so many points beside each other
STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, searchable
    "svg.hashsalt": "neat_bench",
}


def _looks(methods: list[str]) -> list[dict[str, Any]]:
    """Return colour, marker and line style for rows of these methods: the core ones look alike in all figures."""
    others = [method for method in dict.fromkeys(methods) if method not in CORE]
    order = [*CORE, *others]
    taken: list[int] = []
    for method in methods:
        index = order.index(method)
        taken.append(index if index not in taken else max(len(order), *taken) + 1)
    return [
        {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": LINES[index // len(COLOURS) % len(LINES)],
        }
        for index in taken
    ]


def _panels(count: int, labels: list[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, at most four across, and room below for a legend of these labels."""
    across = min(4, count)
    down = -(-count // across)
    # margins in inches, not a layout engine: with many panels that takes longer than the drawing
    width = max(5.6, 3.2 * across)
    below = 0.75 + 0.155 * -(-len(labels) // _legend_columns(width, labels))
    height = 3.1 * down - 0.5 + below
    figure = Figure(figsize=(width, height))
    gaps = {"wspace": 0.75 * across / (width - 1.0) * 1.1, "hspace": 0.85 * down / (height - 0.3 - below)}
    figure.subplots_adjust(0.65 / width, below / height, 1 - 0.15 / width, 1 - 0.3 / height, **gaps)
    panels = list(figure.subplots(down, across, squeeze=False).flatten())
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(5))
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _legend_columns(width: float, labels: list[str]) -> int:
    """Return how many columns of a legend at 7.5 points fit into a width in inches, at most five."""
    widest = max(TextPath((0, 0), label, size=7.5).get_extents().width for label in labels) / 72
    return max(1, min(5, len(labels), int(width / (0.55 + widest))))  # beside a label: its line and the gap


def _legend_below(figure: Figure, panels: list[Axes]) -> None:
    """Put one legend for all panels under them."""
    found = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    columns = _legend_columns(figure.get_figwidth(), list(found))
    figure.legend(found.values(), found.keys(), loc="lower center", ncols=columns, fontsize=7.5)


def _set_apart(costs: list[float]) -> list[float]:
    """Return by how many points (1/72 inch) to shift each mark sideways, so that near-equal costs do not cover it."""
    shifts = [0.0] * len(costs)
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    groups: list[list[int]] = []
    for index in order:
        if groups and costs[index] <= costs[groups[-1][-1]] * (1 + NEAR):
            groups[-1].append(index)
        else:
            groups.append([index])
    for group in groups:
        for place, index in enumerate(group):
            shifts[index] = APART * (place - (len(group) - 1) / 2)
    return shifts


def _name_points(figure: Figure, axes: Axes, names: list[tuple[str, tuple[float, float], Transform]]) -> None:
    """Write names beside marks (name, place, transform), pushed apart upwards where they would cover each other."""
    figure.draw_without_rendering()  # limits and layout are final from here on
    scale = figure.dpi / 72
    placed: list[tuple[float, float, float]] = []
    for name, point, beside in sorted(names, key=lambda each: each[1][::-1]):
        x, y = beside.transform(point)
        width, offset = 5.0 * scale * len(name), 3.0 * scale
        while any(
            abs(y + offset - other) < 9 * scale and x < right and left < x + width for left, right, other in placed
        ):
            offset += 2 * scale
        placed.append((x, x + width, y + offset))
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.5"} if offset > 6 * scale else None
        text: Any = {"xytext": (6, offset / scale), "textcoords": "offset points", "fontsize": 7.5}
        axes.annotate(name, point, xycoords=beside, arrowprops=line, **text)


def _headlines(table: Table) -> list[str]:
    """Return the columns that stand for the whole table: the average; where no two rows have it, each that has runs."""
    run = [task for task in table.spec.columns if any(task in row.cells for row in table.rows)]
    averaged = sum(bool(row.scores(AVERAGE, table.spec)) for row in table.rows)
    return [AVERAGE] if len(run) > 1 and averaged > 1 else run


def _cells(row: Row, column: str) -> list[Cell]:
    """Return the cells behind a column's score: all of them for the average."""
    return list(row.cells.values()) if column == AVERAGE else [row.cells[column]]


def _title(figure: Figure, table: Table) -> None:
    """Write the table's title above the figure, in as many lines as it needs."""
    figure.suptitle(textwrap.fill(f"{table.spec.title}: {table.heading}", int(13 * figure.get_figwidth())), fontsize=9)


def _y_label(table: Table, column: str) -> str:
    if column == AVERAGE:
        return "Average over tasks (%)"
    metrics = {row.cells[column].metric for row in table.rows if column in row.cells}
    return f"{table.spec.columns[column]}, {' / '.join(sorted(metrics)).replace('_', ' ')} (%)"


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """Return which points (cost, score) no other beats: none as cheap scores higher, none as good costs less."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front, best = [], -np.inf
    for index in order:
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front


def _against(table: Table, column: str, cost: Callable[[list[Cell]], float], label: str, log: bool) -> Figure | None:
    """Return a column's score against a cost, with 95% intervals over seeds and the Pareto front."""
    rows = [row for row in table.rows if row.scores(column, table.spec)]
    if len(rows) < 2:
        return None
    costs = [cost(_cells(row, column)) for row in rows]
    scores = [list(row.scores(column, table.spec).values()) for row in rows]
    means = [100 * float(np.mean(each)) for each in scores]
    front = pareto(list(zip(costs, means, strict=True)))
    told = len(rows) <= MOST_LABELS
    figure = Figure(figsize=(7.6 if told else 6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    along = [costs[i] for i in front], [means[i] for i in front]
    axes.plot(*along, color="0.6", linewidth=1, zorder=1, drawstyle="steps-post", label="Pareto front")
    names = []
    shifts = _set_apart(costs) if log else [0.0] * len(rows)
    for index, (row, look) in enumerate(zip(rows, _looks([row.method for row in rows]), strict=True)):
        at = costs[index], means[index]
        low, high = (100 * end for end in interval(scores[index]) or (at[1] / 100,) * 2)
        beside = axes.transData + ScaledTranslation(shifts[index] / 72, 0, figure.dpi_scale_trans)
        look = look | {"linestyle": "none", "clip_on": False}
        drawn = axes.errorbar(
            *at, [[at[1] - low], [high - at[1]]], label=row.label if told else None,
            markersize=6, capsize=2, elinewidth=0.8, zorder=2, **look,
        )  # fmt: skip
        for artist in drawn.get_children():  # once the limits have taken in where it truly is
            artist.set_transform(beside)
        if not told and (index in front or row.method == table.spec.baseline):
            names.append((row.label, at, beside))
    if log:
        least = max(1.0, min((c for c in costs if c > 0), default=1.0))
        axes.set_xscale("symlog", linthresh=least)
        axes.set_xlim(0 if min(costs) == 0 else least / 2, 2 * max(least, *costs))
        steps = (1,) if max(costs) > 30 * least else (1, 2, 5)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=least, subs=steps))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(f"{label} (marks within {NEAR:.0%} stand side by side)" if any(shifts) else label)
    axes.set_ylabel(_y_label(table, column))
    _title(figure, table)
    if told:
        figure.legend(loc="outside right center", fontsize=7.5)
    else:
        axes.legend(loc="lower right", fontsize=7.5)
        axes.margins(x=0.12)
        _name_points(figure, axes, names)
    return figure


def _curve(row: Row, task: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the steps at which all of a cell's runs were evaluated, and their scores, runs x steps."""
    cell = row.cells.get(task)
    if cell is None:
        return None
    curves = [{s["step"]: s["report"][cell.metric] for s in run["history"]} for run in cell.selection.runs]
    steps = sorted(set.intersection(*map(set, curves)))
    if len(steps) < 2:
        return None
    return np.array(steps), 100 * np.array([[curve[step] for step in steps] for curve in curves])


def learning_curves(table: Table) -> Figure | None:
    """Return the reported score after each evaluation: mean over seeds, with few rows also one standard deviation."""
    tasks = [task for task in table.spec.columns if any(_curve(row, task) for row in table.rows)]
    if not tasks or len(table.rows) > MOST_LABELS:
        return None
    figure, panels = _panels(len(tasks), [row.label for row in table.rows])
    for panel, task in zip(panels, tasks, strict=True):
        for row, look in zip(table.rows, _looks([row.method for row in table.rows]), strict=True):
            if (found := _curve(row, task)) is None:
                continue
            steps, scores = found
            mean = scores.mean(axis=0)
            panel.plot(steps, mean, label=row.label, markersize=3.5, linewidth=1.2, **look)
            if len(scores) > 1 and len(table.rows) <= MOST_BANDS:
                spread = scores.std(axis=0, ddof=1)
                panel.fill_between(steps, mean - spread, mean + spread, color=look["color"], alpha=0.12, linewidth=0)
        panel.set_title(table.spec.columns[task], fontsize=9)
        panel.set_xlabel("optimizer step")
        panel.set_ylabel(_y_label(table, task).partition(", ")[2])
    _legend_below(figure, panels)
    return figure


def ablation(table: Table, column: str, key: str) -> Figure | None:
    """Return a column's score against the values of a split field, a line a method, with 95% intervals."""
    lines: dict[tuple[str, str], list[tuple[Any, Row]]] = {}
    for row in table.rows:
        if key in row.split and row.scores(column, table.spec):
            others = {name: value for name, value in row.split.items() if name != key}
            lines.setdefault((row.method, repr(sorted(others.items()))), []).append((row.split[key], row))
    lines = {line: found for line, found in lines.items() if len({repr(value) for value, _ in found}) > 1}
    if not lines:
        return None
    shown = {_shown(value) for found in lines.values() for value, _ in found}
    values = sorted(shown, key=lambda value: (isinstance(value, str), value))
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    looks = _looks([method for method, _ in lines])
    for index, (((method, _), found), look) in enumerate(zip(lines.items(), looks, strict=True)):
        at = np.array([values.index(_shown(value)) for value, _ in found]) + 0.06 * (index - (len(lines) - 1) / 2)
        scores = [list(row.scores(column, table.spec).values()) for _, row in found]
        means = np.array([100 * np.mean(each) for each in scores])
        ends = [interval(each) or (np.mean(each),) * 2 for each in scores]
        errors = np.array([[m - 100 * low, 100 * high - m] for m, (low, high) in zip(means, ends, strict=True)]).T
        numeric = not any(isinstance(value, str) for value in values)
        order = np.argsort(at)
        several = sum(other == method for other, _ in lines) > 1
        label = _line_name(found[0][1], [name for name in table.spec.split_by if name != key] if several else [])
        axes.errorbar(at[order], means[order], errors[:, order], capsize=2, elinewidth=0.8, markersize=5, label=label,
                      **(look | ({} if numeric else {"linestyle": "none"})))  # fmt: skip
    axes.set_xticks(range(len(values)), [str(value) for value in values])
    axes.set_xlabel(key.removeprefix("method.").replace("_", " "))
    axes.set_ylabel(_y_label(table, column))
    _title(figure, table)
    axes.legend(fontsize=7.5)
    return figure


def _line_name(row: Row, fixed: list[str]) -> str:
    """Return the method's label with the values of the fields that set its line apart."""
    told = [f"{name.rpartition('.')[2]} {_shown(row.split[name])}" for name in fixed if name in row.split]
    label = row.label.partition(" (")[0]
    return f"{label} ({', '.join(told)})" if told else label


def _shown(value: Any) -> Any:
    return "+".join(map(str, value)) if isinstance(value, list) else value


def critical_differences(table: Table) -> Figure | None:
    """Return the diagram of mean ranks (Demsar 2006): a bar joins what Nemenyi's test does not tell apart."""
    rows, scores = table.ranked
    if len(rows) < 3 or len(scores) < 3:
        return None
    ranks = average_ranks(scores)
    difference = critical_difference(len(scores), len(rows))
    order = np.argsort(ranks)
    half = -(-len(order) // 2)
    figure = Figure(figsize=(6.8, 1.3 + 0.24 * half), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    low, high = 1, len(rows)
    axes.set_xlim(low - 0.42 * (high - low), high + 0.42 * (high - low))
    axes.set_ylim(-1.6 - half, 1.9)
    axes.invert_xaxis()  # the best stand on the right, as is the custom
    axes.plot([low, high], [0, 0], color="black", linewidth=1)
    for tick in range(low, high + 1):
        axes.plot([tick, tick], [0, 0.15], color="black", linewidth=1)
        axes.text(tick, 0.3, str(tick), ha="center", va="bottom", fontsize=8)
    axes.plot([high, high - difference], [1.35, 1.35], color="black", linewidth=2)
    axes.text(high - difference / 2, 1.5, f"critical difference {difference:.2f}", ha="center", va="bottom", fontsize=8)
    groups = _alike(ranks[order], difference)
    for place, index in enumerate(order):
        best_half = place < half
        y = -0.9 - 0.3 * len(groups) - (place if best_half else len(order) - 1 - place) * 0.9
        edge = low - 0.05 * (high - low) if best_half else high + 0.05 * (high - low)
        axes.plot([ranks[index], ranks[index], edge], [0, y, y], color="0.35", linewidth=0.8)
        axes.text(edge, y, f" {table.rows[rows[index]].label} {ranks[index]:.1f} ", va="center", fontsize=8,
                  ha="left" if best_half else "right")  # fmt: skip
    for level, (first, last) in enumerate(groups):
        y = -0.35 - 0.3 * level
        axes.plot([ranks[order[first]] - 0.03, ranks[order[last]] + 0.03], [y, y], color="black", linewidth=3)
    axes.set_ylim(-1.3 - 0.3 * len(groups) - half * 0.9, 2.0)
    return figure


def _alike(ranks: np.ndarray, difference: float) -> list[tuple[int, int]]:
    """Return the longest runs (first, last) of sorted ranks that lie within the difference, those of one left out."""
    groups: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = int(np.searchsorted(ranks, ranks[first] + difference, side="right")) - 1
        if last > first and not (groups and groups[-1][1] >= last):
            groups.append((first, last))
    return groups


def best_of_k(entries: list[Entry]) -> Figure | None:
    """Return, task by task of one suite and model, the score to expect of a method's best of k tried settings."""
    tasks: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.selection.tried > 1:
            tasks.setdefault(entry.task, []).append(entry)
    if not tasks:
        return None
    figure, panels = _panels(
        len(tasks), list(dict.fromkeys(entry.method for tuned in tasks.values() for entry in tuned))
    )
    for panel, (task, tuned) in zip(panels, tasks.items(), strict=True):
        for entry, look in zip(tuned, _looks([entry.name for entry in tuned]), strict=True):
            curve = [100 * value for value in entry.selection.best_of()]
            panel.plot(range(1, len(curve) + 1), curve, label=entry.method, markersize=4, linewidth=1.2, **look)
        panel.set_xlabel("settings tried")
        panel.set_ylabel("expected score of the best (%)")
        panel.set_title(task, fontsize=9)
    _legend_below(figure, panels)
    return figure


def slug(text: str) -> str:
    """Return a text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def prefix(name: str, table: Table) -> str:
    """Return what the file names of all figures of a table start with."""
    return f"{name}_{slug(table.heading)}_"


def figures_of(name: str, table: Table) -> Iterator[tuple[str, str, Figure]]:
    """Yield file name, title and figure of everything that a table has the runs for."""
    start, headlines = prefix(name, table), _headlines(table)
    costs: dict[str, tuple[str, str, Callable[[list[Cell]], float]]] = {
        "parameters": (
            "trainable parameters",
            "trainable parameters, head apart",
            lambda cells: max(cell.parameters for cell in cells),
        ),
        "time": (
            "training time",
            "training time of one run (s)",
            lambda cells: float(np.mean([cell.seconds for cell in cells])),
        ),
        "memory": ("memory", "peak memory (MiB)", lambda cells: max(cell.memory for cell in cells) / MEBI),
    }
    with mpl.rc_context(STYLE):
        for column in headlines:
            end = f"_{slug(table.spec.columns[column])}" if len(headlines) > 1 else ""
            of = f", {table.spec.columns[column]}" if len(headlines) > 1 else ""
            for kind, (what, label, cost) in costs.items():
                if (figure := _against(table, column, cost, label, log=kind == "parameters")) is not None:
                    yield f"{start}{kind}{end}", f"Score against {what}{of}", figure
            for key in table.spec.split_by:
                if (figure := ablation(table, column, key)) is not None:
                    yield f"{start}by-{slug(key.removeprefix('method.'))}{end}", f"Score by {key}{of}", figure
        if (figure := learning_curves(table)) is not None:
            yield f"{start}learning", "Learning curves", figure
        if (figure := critical_differences(table)) is not None:
            yield f"{start}ranks", "Mean ranks over tasks", figure


def tuning_figures(entries: list[Entry]) -> Iterator[tuple[str, str, Figure]]:
    """Yield file name, title and figure of the best-of-k curves of each suite and model."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.suite, entry.model), []).append(entry)
    with mpl.rc_context(STYLE):
        for (suite, model), found in groups.items():
            if (figure := best_of_k(found)) is not None:
                yield f"tuning_{slug(suite)}_{slug(model)}", f"Tuning: {suite}, {model}", figure
