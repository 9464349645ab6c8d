"""Where the rows of a split come from: a named file, the data root, or the Hugging Face hub."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neat_bench.errors import InputError
from neat_bench.files import sha256_of_file
from neat_bench.hub import resolve_revision

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class HubSource:
    """A data set on the hub: repository (or a local folder of its layout), configuration, commit.

    rename: its column -> our column, where they differ.
    """

    repo: str
    config: str | None = None
    revision: str | None = None
    rename: dict[str, str] | None = None


@dataclass(frozen=True)
class Provenance:
    """What the record says of one split's rows; `sha256` is of the file, or of the rows from elsewhere."""

    split: str
    origin: str
    rows: int
    sha256: str
    revision: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the record."""
        return asdict(self)


def sha256_of_rows(rows: Dataset) -> str:
    """Return a hash of the rows' values and column names, in order."""
    import hashlib

    digest = hashlib.sha256(repr(rows.column_names).encode())
    for row in rows:
        digest.update(repr(list(row.values())).encode())
    return digest.hexdigest()


def _read_file(path: Path) -> Dataset:
    """Read a parquet, CSV or JSON (a list of objects) file whole; raises InputError when it is missing or is none."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet
    from datasets import Dataset

    readers = {
        ".parquet": pyarrow.parquet.read_table,
        ".csv": pyarrow.csv.read_csv,
        ".json": lambda file: pyarrow.Table.from_pylist(json.loads(file.read_text())),
    }
    if path.suffix not in readers:
        raise InputError(f"{path}: a data file ends in {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist: correct the path in the data set's `files`")
    try:
        return Dataset(readers[path.suffix](path))
    except (pyarrow.ArrowException, OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        reason = str(error).splitlines()[0].replace(str(path), "it")[:100]
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from None


def _read_hub(source: HubSource, split: str, offline_cure: str) -> tuple[Dataset, str | None]:
    """Load one split from the hub and say which commit answered."""
    revision = source.revision
    if not Path(source.repo).is_dir():
        revision = resolve_revision(source.repo, "dataset", source.revision, offline_cure)
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(source.repo, source.config, split=split, revision=revision)
        rows = rows.rename_columns(source.rename or {})
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot load split {split} of {source.repo}: {reason}; {offline_cure}") from None
    return rows, revision


def read_split(
    name: str, split: str, data_root: Path, files: dict[str, str] | None, hub: HubSource | None
) -> tuple[Dataset, Provenance]:
    """Return the rows of one split of the data set `name` ("suite/task"), and where they came from.

    Looked up in this order: `files[split]`, `<data_root>/<suite>/<task>/<split>.parquet` (or .json), the hub.
    Raises InputError naming both ways where there is neither file nor hub.
    """
    if files is not None and split in files:
        path = Path(files[split]).expanduser()
        rows = _read_file(path)
        return rows, Provenance(split, path.name, len(rows), sha256_of_file(path))
    for path in (data_root / name / f"{split}.json", data_root / name / f"{split}.parquet"):
        if path.is_file():
            rows = _read_file(path)
            return rows, Provenance(split, f"{name}/{path.name}", len(rows), sha256_of_file(path))
    if files is not None and hub is None:
        raise InputError(f"dataset.files of {name} has no entry '{split}': give a file for it")
    cure = f"put the split at {path} (columns as on the hub)"
    if hub is None:
        raise InputError(f"no data for {name}: {cure}, or set dataset.hub.repo")
    rows, revision = _read_hub(hub, split, cure)
    return rows, Provenance(split, hub.repo, len(rows), sha256_of_rows(rows), revision)
