"""Files written whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from neat_bench.errors import InputError

if TYPE_CHECKING:
    from filelock import SoftFileLease

# a holder that shows no life for so long is taken for dead; on its own machine its death is seen at once
LEASE_SECONDS = 120.0


def lease_of(path: Path, suffix: str = ".lock") -> SoftFileLease:
    """Return the claim, not yet taken, to be the one process that produces `path`; it is a file beside it.

    It needs nothing of the file system but that creation is exclusive, so it holds between machines.
    """
    from filelock import SoftFileLease

    return SoftFileLease(path.with_suffix(suffix), lease_duration=LEASE_SECONDS)


@contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Be the one process that produces `path`; wait, and say so, while another one is."""
    from filelock import Timeout

    lease = lease_of(path)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        print(f"process {lease.pid} is at this run ({lease.lock_file}): waiting for its end", file=sys.stderr)
        lease.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lease.release()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it; a failure leaves nothing behind.

    Raises InputError where the folder cannot be written (read-only, full).
    """
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        beside = Path(name)
        write(beside)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free some space or set paths.results to a "
            "folder that can be written"
        ) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def write_folder_whole(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `folder`, then rename it, unless another process was faster.

    Raises InputError where it cannot be written (read-only, full).
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
            inside = Path(beside) / "whole"
            inside.mkdir()
            write(inside)
            if not folder.is_dir():
                os.rename(inside, folder)
    except OSError as error:
        if not folder.is_dir():
            raise InputError(
                f"cannot write {folder}: {error.strerror or error}; free some space or set paths.cache to a "
                "folder that can be written"
            ) from error


def check_writable(folder: Path) -> None:
    """Raise InputError now, rather than after hours of training, if `folder` cannot take a file."""
    probe = folder / ".writable"
    write_whole(probe, lambda path: path.write_bytes(b"x"))
    probe.unlink(missing_ok=True)


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """Return the hexadecimal sha256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the hexadecimal sha256 of a text in UTF-8."""
    return sha256_of_bytes(text.encode())
