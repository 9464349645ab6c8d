"""Where records live, and how they are written and read.

results/runs/<suite>/<task>/<model>/<method>/<config hash>/seed<k>.json, beside it
seed<k>.items.parquet (one row a test item) and, if asked for, seed<k>.adapter/. A sweep's job that failed leaves
seed<k>.failed.txt there until it succeeds.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from neat_bench.files import write_whole
from neat_bench.results.record import SCHEMA
from neat_bench.secrets import redacted, redacted_text

FAILED = ".failed.txt"

REQUIRED = ("schema", "source", "names", "config", "hashes", "seed", "results", "parameters", "cost")


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested config as dotted key -> value, as JSON."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flattened(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value, sort_keys=True)
    return found


def record_path(results: Path, suite: str, task: str, model: str, method: str, config: str, seed: int) -> Path:
    """Return where the record of a run belongs."""
    return results / "runs" / suite / task / model / method / config / f"seed{seed}.json"


def write_record(path: Path, record: dict[str, Any], items: pd.DataFrame) -> None:
    """Write items, then the record, each whole or not at all: a record always has its items."""
    write_whole(path.with_suffix(".items.parquet"), lambda beside: items.to_parquet(beside, index=False))
    text = json.dumps(redacted(record), indent=1, sort_keys=True, allow_nan=False)
    write_whole(path, lambda beside: beside.write_text(text + "\n"))
    path.with_suffix(FAILED).unlink(missing_ok=True)


def write_failure(path: Path, overrides: list[str], traceback: str) -> None:
    """Leave, where a run's record would be, what it was told and the traceback it ended with."""
    text = redacted_text(f"{' '.join(overrides)}\n\n{traceback.rstrip()}\n")
    write_whole(path.with_suffix(FAILED), lambda beside: beside.write_text(text))


def read_record(path: Path) -> dict[str, Any]:
    """Return a record; raises ValueError saying what is wrong with the file."""
    try:
        record = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict) or any(key not in record for key in REQUIRED):
        raise ValueError(f"{path} is not a run record")
    if record["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {record['schema']}; this version reads {SCHEMA}")
    if record["source"] != "measured":
        raise ValueError(f"{path} does not hold a measured run")
    return record


def stored(path: Path) -> dict[str, Any] | None:
    """Return the record at a path, or None if there is none that can be read (a damaged one is named)."""
    if not path.exists():
        return None
    try:
        return read_record(path)
    except ValueError as error:
        warnings.warn(f"{error}; the run is repeated", stacklevel=2)
        return None


def read_records(results: Path) -> Iterator[dict[str, Any]]:
    """Yield all records under a results folder in path order, each with its `path`; an unreadable one is skipped.

    A warning names what is skipped.
    """
    for path in sorted((results / "runs").rglob("seed*.json")):
        try:
            yield read_record(path) | {"path": str(path)}
        except ValueError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
