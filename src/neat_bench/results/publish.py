"""From a results folder to everything that is made of it: tables, ledger, reproduction, figures and the report."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from neat_bench.errors import InputError
from neat_bench.files import write_whole
from neat_bench.results.figures import Figure, figures_of, prefix, tuning_figures
from neat_bench.results.ledger import Entry, ledger_csv, ledger_markdown, make_ledger
from neat_bench.results.published import Published, load_published
from neat_bench.results.render import latex_document, to_csv, to_latex, to_markdown
from neat_bench.results.report import Drawn, render_report
from neat_bench.results.reproduction import reproduction_csv, reproduction_markdown, reproductions
from neat_bench.results.store import read_records
from neat_bench.results.tables import Table, TableSpec, build_tables


@dataclass
class Made:
    """What was written: the markdown of each table, the files, and why a table was refused."""

    markdown: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def _write(made: Made, path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text))
    made.files.append(path)


# what the drawing processes find in their memory: a figure cannot be sent to them, nor can a table cheaply
_waiting: list[Callable[[], Iterable[tuple[str, str, Figure]]]] = []


def _draw_one(index: int, folder: Path) -> list[Drawn]:
    """Write the figures of one of `_waiting` as PNG and SVG; return them for the report."""
    drawn = []
    for name, title, figure in _waiting[index]():
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        write_whole(svg, partial(figure.savefig, format="svg", metadata={"Date": None}))
        figure.set_layout_engine("none")  # laid out already
        write_whole(png, partial(figure.savefig, format="png"))
        drawn.append(Drawn(name, title, svg.read_text()))
    return drawn


def _draw_all(
    made: Made, folder: Path, sources: list[Callable[[], Iterable[tuple[str, str, Figure]]]]
) -> list[list[Drawn]]:
    """Draw what every source yields, several sources at a time where there are cores for it."""
    _waiting[:] = sources
    workers = min(len(sources), os.cpu_count() or 1)
    if workers > 1:
        # forked, so that they have the sources
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
            drawn = list(pool.map(_draw_one, range(len(sources)), [folder] * len(sources)))
    else:
        drawn = [_draw_one(index, folder) for index in range(len(sources))]
    _waiting.clear()
    made.files += [folder / f"{each.name}.{end}" for found in drawn for each in found for end in ("svg", "png")]
    return drawn


def _remove_older(folder: Path, start: str, drawn: list[Drawn]) -> None:
    """Remove the figures of a table, whose names begin so, that its runs no longer give."""
    names = {each.name for each in drawn}
    for path in folder.glob(f"{start}*"):
        if path.stem not in names:
            path.unlink()


def publish(results: Path, specs: dict[str, TableSpec], protocol: str, whole: bool = True) -> Made:
    """Write what a results folder gives under the specs, by name; with `whole`, ledger and report as well.

    A table whose runs cannot be compared is refused, with the reason, and the others are made.
    """
    records = list(read_records(results))
    published = load_published(results / "published")
    suffix = "" if protocol == "split_validation" else f"_{protocol}"
    made = Made()
    shown: list[tuple[str, Table]] = []
    for name, spec in specs.items():
        try:
            tables = _tables(name + suffix, spec, records, published, protocol, results / "tables", made)
        except InputError as error:
            made.refused.append(str(error))
            continue
        shown += [(name, table) for table in tables]
    ledger = make_ledger(records, protocol) if whole else []
    with_runs = [index for index, (_, table) in enumerate(shown) if table.rows]
    sources = [partial(figures_of, shown[index][0] + suffix, shown[index][1]) for index in with_runs]
    by_suite = [list(group) for _, group in groupby(ledger, key=lambda entry: (entry.suite, entry.model))]
    tuning = [partial(tuning_figures, entries) for entries in by_suite]
    drawn = _draw_all(made, results / "figures", [*sources, *tuning])
    figures = dict(zip(with_runs, drawn, strict=False))
    for index, found in figures.items():
        _remove_older(results / "figures", prefix(shown[index][0] + suffix, shown[index][1]), found)
    if whole:
        complete = [(name, table, figures.get(index, [])) for index, (name, table) in enumerate(shown)]
        _write_whole_folder(results, suffix, ledger, complete, list(chain.from_iterable(drawn[len(sources) :])), made)
    return made


def _tables(
    name: str,
    spec: TableSpec,
    records: list[dict[str, Any]],
    published: list[Published],
    protocol: str,
    folder: Path,
    made: Made,
) -> list[Table]:
    """Write one spec's tables in all three forms and return them."""
    tables = build_tables(spec, records, published, protocol)
    if not tables:
        made.empty.append(name)
        return []
    texts = {
        ".md": "\n".join(map(to_markdown, tables)),
        ".tex": "\n".join(map(to_latex, tables)),
        ".csv": to_csv(tables),
    }
    for ending, text in texts.items():
        _write(made, folder / f"{name}{ending}", text)
    made.markdown[name] = texts[".md"]
    return tables


def _write_whole_folder(
    results: Path,
    suffix: str,
    ledger: list[Entry],
    shown: list[tuple[str, Table, list[Drawn]]],
    tuning: list[Drawn],
    made: Made,
) -> None:
    """Write what is made of all tables together."""
    folder = results / "tables"
    names = [path.stem for path in made.files if path.suffix == ".tex"]
    reproduced = [each for _, table, _ in shown for each in reproductions(table)]
    _write(made, folder / f"all{suffix}.tex", latex_document(names))
    _write(made, folder / f"ledger{suffix}.md", ledger_markdown(ledger))
    _write(made, folder / f"ledger{suffix}.csv", ledger_csv(ledger))
    if reproduced:
        _write(made, folder / f"reproduction{suffix}.md", reproduction_markdown(reproduced))
        _write(made, folder / f"reproduction{suffix}.csv", reproduction_csv(reproduced))
    _write(made, results / f"report{suffix}.html", render_report(shown, tuning, ledger, reproduced, made.refused))
