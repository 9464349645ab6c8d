"""Published numbers: their own files, their own type, never mixed with measured ones.

results/published/*.csv holds one value a line, sources.csv the citation and protocol of each source.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from neat_bench.errors import InputError

COLUMNS = (
    "suite",
    "model",
    "method",
    "label",
    "params",
    "task",
    "metric",
    "value",
    "std",
    "quoted",
    "source",
)


@dataclass(frozen=True)
class Published:
    """One value of a published table, as printed there.

    value and std are percent unless the metric says otherwise; params as printed (percent or millions, see
    the source); quoted: the source itself takes the row from another paper; method is this project's name
    or "".
    """

    suite: str
    model: str
    method: str
    label: str
    params: str
    task: str
    metric: str
    value: float
    std: float | None
    quoted: bool
    source: str
    citation: str
    protocol: str


def load_published(folder: Path) -> list[Published]:
    """Return every published value under a folder; raises InputError naming file and line of a bad one."""
    sources: dict[str, dict[str, str]] = {}
    path = folder / "sources.csv"
    if path.exists():
        with open(path, newline="") as handle:
            sources = {row["source"]: row for row in csv.DictReader(handle)}
    values = []
    for path in sorted(folder.glob("*.csv")):
        if path.name == "sources.csv":
            continue
        with open(path, newline="") as handle:
            reader = csv.DictReader(handle)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InputError(f"{path}: the header must be {','.join(COLUMNS)}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{where}: {len(COLUMNS)} columns expected")
                if row["source"] not in sources:
                    raise InputError(f"{where}: source '{row['source']}' has no line in sources.csv")
                try:
                    value, std = float(row["value"]), float(row["std"]) if row["std"] else None
                except ValueError:
                    raise InputError(f"{where}: value or std is not a number") from None
                source = sources[row["source"]]
                texts = {name: row[name] for name in COLUMNS if name not in ("value", "std", "quoted")}
                values.append(
                    Published(
                        **texts,
                        value=value,
                        std=std,
                        quoted=row["quoted"] == "yes",
                        citation=source["citation"],
                        protocol=source["protocol"],
                    )
                )
    return values
