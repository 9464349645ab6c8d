"""The measured results that are committed: the tables say what the records say, and these are fit to be shown."""

import json
import re
from pathlib import Path

import pytest

from neat_bench.config import CONFIGS, load_named
from neat_bench.grid import Grid
from neat_bench.results.render import to_csv, to_markdown
from neat_bench.results.store import read_records
from neat_bench.results.tables import TableSpec, build_tables

GRIDS = CONFIGS.parent / "results" / "grids"
NAMES = sorted(path.name for path in GRIDS.iterdir() if (path / "tables").is_dir())


@pytest.fixture
def records_of(tmp_path):
    """Return (grid) -> its records as a clone has them, without items."""
    return lambda grid: [
        record | {"path": str(tmp_path / Path(record["path"]).name)} for record in read_records(GRIDS / grid)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_of_a_grid_are_what_its_records_give(name, records_of):
    records = records_of(name)
    assert records
    for table in load_named(Grid, "grid", name).tables:
        written = GRIDS / name / "tables" / f"{table}.md"
        spec = load_named(TableSpec, "table", table)
        made = build_tables(spec, records, [], "split_validation")
        if made:
            assert written.read_text() == "\n".join(map(to_markdown, made))
            assert written.with_suffix(".csv").read_text() == to_csv(made)
        else:
            assert not written.exists()


def rows_of(text):
    """Return the rows of a text's markdown tables, label -> cells."""
    return {row[0]: row[1:] for line in text.splitlines() if line.startswith("| ") for row in [line.split(" | ")]}


def test_the_tables_in_the_readme_are_those_of_the_grids():
    sections = re.findall(r"^### (\w+): (.*?)(?=^##)", (GRIDS.parent / "README.md").read_text(), flags=re.S | re.M)
    assert {name for name, _ in sections} == set(NAMES)
    left = {path: rows_of(path.read_text()) for path in GRIDS.glob("*/tables/grid_*.md")}
    for name, text in sections:
        shown = rows_of(text)
        assert len(shown) == text.count("\n| "), name  # no label twice
        same = [
            path for path, rows in left.items()
            if path.parent.parent.name == name and rows.keys() == shown.keys()
            and all(set(cells) <= set(rows[label]) for label, cells in shown.items())
        ]  # fmt: skip
        assert len(same) == 1, (name, shown)
        del left[same[0]]
    assert not left


@pytest.mark.parametrize("name", NAMES)
def test_the_records_are_of_committed_code_and_of_nobodys_machine(name):
    for path in (GRIDS / name / "runs").rglob("seed*.json"):
        text = path.read_text()
        record = json.loads(text)
        assert record["environment"]["code"]["dirty"] is False, path
        assert record["config"]["trainer"]["limit_train"] is None
        assert not re.search(r"""["' =:,/\[{]/\w""", text), path  # an absolute path
