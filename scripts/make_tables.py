"""Turn results/ into markdown, LaTeX and CSV under results/tables, one set for each configs/table/*.yaml.

python scripts/make_tables.py                          every table
python scripts/make_tables.py --table glue --print     one of them, shown as well
python scripts/make_tables.py --protocol best_dev      the optimistic rule that many papers report
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from omegaconf import OmegaConf

from neat_bench.config import CONFIGS, build_dataclass
from neat_bench.errors import InputError, nearest
from neat_bench.evaluation.protocols import PROTOCOLS
from neat_bench.files import write_whole
from neat_bench.results.published import load_published
from neat_bench.results.render import to_csv, to_latex, to_markdown
from neat_bench.results.store import read_records
from neat_bench.results.tables import TableSpec, build_tables


def main() -> None:
    """Write the tables and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="results", type=Path, help="folder with runs/ and published/")
    parser.add_argument("--table", help="name of one file in configs/table; all if left out")
    parser.add_argument("--protocol", default="split_validation", choices=PROTOCOLS)
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="keep runs that have this")
    parser.add_argument("--print", action="store_true", help="show the markdown as well")
    arguments = parser.parse_args()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        _write_tables(arguments)
    except InputError as error:
        sys.exit(f"error: {error}")


def _write_tables(arguments: argparse.Namespace) -> None:
    paths = {path.stem: path for path in sorted((CONFIGS / "table").glob("*.yaml"))}
    if arguments.table and arguments.table not in paths:
        raise InputError(f"unknown table '{arguments.table}'{nearest(arguments.table, paths)}")
    where = dict(pair.split("=", 1) for pair in arguments.where)
    records = list(read_records(arguments.results))
    published = load_published(arguments.results / "published")
    for name in [arguments.table] if arguments.table else paths:
        values = OmegaConf.to_container(OmegaConf.load(paths[name]))
        spec = build_dataclass(TableSpec, values, f"table {name}")
        spec.where |= where
        tables = build_tables(spec, records, published, arguments.protocol)
        if not tables:
            print(f"{name}: no runs and no published rows yet")
            continue
        suffix = "" if arguments.protocol == "split_validation" else f"_{arguments.protocol}"
        target = arguments.results / "tables" / f"{name}{suffix}"
        markdown = "\n".join(to_markdown(table) for table in tables)
        texts = {
            ".md": markdown,
            ".tex": "\n".join(to_latex(table) for table in tables),
            ".csv": to_csv(tables),
        }
        for ending, text in texts.items():
            write_whole(target.with_suffix(ending), lambda path, text=text: path.write_text(text))
        if arguments.print:
            print(f"\n{markdown}")
        measured = sum(len(row.cells) for table in tables for row in table.rows)
        quoted = sum(len(table.published) for table in tables)
        print(f"{target}.md, .tex, .csv: {measured} measured cells, {quoted} published rows")


if __name__ == "__main__":
    main()
