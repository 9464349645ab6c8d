"""Turn results/ into tables, figures and a report.

python scripts/make_tables.py                          everything: results/tables, results/figures, results/report.html
python scripts/make_tables.py --table glue --print     one table and its figures, shown as well
python scripts/make_tables.py --grid embedded          tables, figures and report of a grid, in results/grids/embedded
python scripts/make_tables.py --protocol best_dev      the optimistic rule that many papers report

configs/table/<name>.yaml says what a table shows. Runs that cannot be compared are refused, with the reason.
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from neat_bench.config import load_named, names_in
from neat_bench.errors import InputError, nearest
from neat_bench.evaluation.protocols import PROTOCOLS
from neat_bench.grid import Grid
from neat_bench.results.publish import publish
from neat_bench.results.tables import TableSpec


def main() -> None:
    """Write what the results give and say where it is; exit with 1 where a table was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="folder with runs/ and published/ (results, or the grid's)")
    parser.add_argument("--grid", help="name of one file in configs/grid: its tables")
    parser.add_argument("--table", help="name of one file in configs/table; all if left out")
    parser.add_argument("--protocol", default="split_validation", choices=PROTOCOLS)
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="keep runs that have this")
    parser.add_argument("--baseline", help="the method that the others are tested against")
    parser.add_argument("--unequal-tuning", action="store_true", help="show methods of which more settings were tried")
    parser.add_argument("--print", action="store_true", help="show the markdown as well")
    arguments = parser.parse_args()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        inside = Path("grids") / arguments.grid if arguments.grid else ""
        made = publish(
            arguments.results or Path("results") / inside,
            _specs(arguments),
            arguments.protocol,
            whole=not arguments.table,
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    if arguments.print:
        print("\n".join(made.markdown.values()))
    for name in made.empty:
        print(f"{name}: no runs (quick checks on limited data do not count) and no published rows yet")
    for path in made.files:
        if path.suffix in (".md", ".html"):
            print(path)
    if made.refused:
        sys.exit("\n".join(f"refused: {reason}" for reason in made.refused))


def _specs(arguments: argparse.Namespace) -> dict[str, TableSpec]:
    names = load_named(Grid, "grid", arguments.grid).tables if arguments.grid else names_in("table")
    if arguments.table:
        if arguments.table not in names:
            raise InputError(f"unknown table '{arguments.table}'{nearest(arguments.table, names)}")
        names = [arguments.table]
    specs = {name: load_named(TableSpec, "table", name) for name in names}
    for spec in specs.values():
        spec.where |= dict(pair.split("=", 1) for pair in arguments.where)
        spec.unequal_tuning |= arguments.unequal_tuning
        spec.baseline = arguments.baseline or spec.baseline
    return specs


if __name__ == "__main__":
    main()
