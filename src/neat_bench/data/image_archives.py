"""From the usual archives of image sets to the parquet layout: class-named folders, or list files with labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neat_bench.errors import InputError
from neat_bench.files import sha256_of_file, write_whole

VTAB_LISTS = {"train": "train800.txt", "validation": "val200.txt", "test": "test.txt"}
SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
SPLIT_SEED = 0
ROWS_A_GROUP = 1000


@dataclass(frozen=True)
class Archive:
    """The images of each split with their labels, and the class names where folders give them."""

    splits: dict[str, list[tuple[Path, int]]]
    classes: list[str] | None = None


def from_class_folders(source: Path, test_share: float | None = None) -> Archive:
    """Return the archive of <source>/<split>/<class>/<image>, or of <source>/<class>/<image>.

    Classes are numbered by name, as torchvision does. test_share: the share of each class that a fixed seed
    puts into the test split, where the folders have no splits. Raises InputError where there is nothing to read.
    """
    from sklearn.model_selection import train_test_split
    from torchvision.datasets import ImageFolder

    folders = {path.name for path in _folder(source).iterdir() if path.is_dir()}
    try:
        if folders and folders <= set(SPLIT_FOLDERS):
            if test_share is not None:
                raise InputError(
                    f"{source} has splits of its own ({', '.join(sorted(folders))}): leave --test-share out"
                )
            found = {SPLIT_FOLDERS[name]: ImageFolder(str(source / name)) for name in sorted(folders)}
            names = {split: tuple(folder.classes) for split, folder in found.items()}
            if len(set(names.values())) > 1:
                raise InputError(f"{source}: the splits have different classes")
            splits = {split: [(Path(path), label) for path, label in folder.samples] for split, folder in found.items()}
            return Archive(splits, list(next(iter(names.values()))))
        whole = ImageFolder(str(source))
    except FileNotFoundError as error:
        raise InputError(f"{source}: {str(error).splitlines()[0]}") from None
    samples = [(Path(path), label) for path, label in whole.samples]
    if test_share is None:
        return Archive({"train": samples}, whole.classes)
    try:
        train, test = train_test_split(
            samples, test_size=test_share, random_state=SPLIT_SEED, stratify=[label for _, label in samples]
        )
    except ValueError as error:
        raise InputError(f"--test-share {test_share} does not fit {source}: {error}") from None
    return Archive({"train": sorted(train), "test": sorted(test)}, whole.classes)


def from_lists(source: Path, lists: dict[str, str]) -> Archive:
    """Return the archive of list files under source: a line is an image's path under source and its label.

    Raises InputError naming the line that is neither, the image that is missing, or the image in two splits.
    """
    splits: dict[str, list[tuple[Path, int]]] = {}
    owner: dict[Path, str] = {}
    for split, name in lists.items():
        file = _folder(source) / name
        if not file.is_file():
            raise InputError(f"{file} does not exist: name the list files, such as train=train800.txt")
        splits[split] = []
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if not line.strip():
                continue
            path, _, label = line.strip().rpartition(" ")
            if not path or not label.isdecimal():
                raise InputError(f"{file}, line {number}: {line!r} is not a path and a label (0, 1, ...)")
            image = source / path
            if not image.is_file():
                raise InputError(f"{file}, line {number}: there is no image {image}")
            if owner.setdefault(image, split) != split:
                raise InputError(f"{file}, line {number}: {path} is in the split {owner[image]} as well")
            splits[split].append((image, int(label)))
    return Archive(splits)


def _folder(source: Path) -> Path:
    if not source.is_dir():
        raise InputError(f"{source} is not a folder: unpack the archive and name its folder")
    return source


def _rows(split: str, samples: list[tuple[Path, int]]) -> Iterator[dict[str, Any]]:
    """Yield the file's bytes as they are, once PIL has decoded them."""
    from PIL import Image

    for path, label in samples:
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{path} (split {split}): the image does not decode ({error})") from None
        yield {"image": {"bytes": path.read_bytes(), "path": path.name}, "label": label}


def convert(archive: Archive, target: Path) -> dict[str, dict[str, Any]]:
    """Write <target>/<split>.parquet (image bytes and label), classes.json and checksums.json; return the last.

    Raises InputError naming an empty split, or an image that does not decode; that split is then not written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()})
    checksums = {}
    for split, samples in archive.splits.items():
        if not samples:
            raise InputError(f"the split {split} holds no image")

        def write(path: Path, split: str = split, samples: list[tuple[Path, int]] = samples) -> None:
            with pq.ParquetWriter(path, schema) as writer:
                for at in range(0, len(samples), ROWS_A_GROUP):
                    writer.write_table(pa.Table.from_pylist([*_rows(split, samples[at : at + ROWS_A_GROUP])], schema))

        file = target / f"{split}.parquet"
        write_whole(file, write)
        checksums[file.name] = {"rows": len(samples), "sha256": sha256_of_file(file)}
    if archive.classes is not None:
        _write_json(target / "classes.json", archive.classes)
    _write_json(target / "checksums.json", checksums)
    return checksums


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, lambda beside: beside.write_text(json.dumps(value, indent=2) + "\n"))
