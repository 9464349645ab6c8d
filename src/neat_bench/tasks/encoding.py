"""Rows encoded once: tokenised or decoded data is cached by its content."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neat_bench.errors import InputError
from neat_bench.files import sha256_of_bytes

if TYPE_CHECKING:
    from datasets import Dataset


def cached_map(
    rows: Dataset, function: Callable[[Any], dict[str, Any]], content: bytes, cache: Path, batched: bool = False
) -> Dataset:
    """Return the rows as `function` encodes them, with their `id`; kept under `cache` by a hash of `content`.

    A damaged file there is made anew. Raises InputError where the folder cannot be written.
    """
    import pyarrow

    key = sha256_of_bytes(content)[:32]
    file = cache / f"{key}.arrow"
    encode = partial(
        rows.map,
        function,
        batched=batched,
        remove_columns=[name for name in rows.column_names if name != "id"],
        cache_file_name=str(file),
        new_fingerprint=key,
        desc=None,
    )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            encoded = encode()
            if len(encoded) == len(rows):
                return encoded
        except (pyarrow.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None) is not None:  # arrow's own have none
                raise
        print(f"warning: {file} is damaged and made anew", file=sys.stderr)
        file.unlink()
        return encode()
    except OSError as error:
        raise InputError(
            f"cannot write {file}: {error.strerror or error}; free some space or set paths.cache to a folder that can "
            "be written"
        ) from error


def vocabulary_of(tokenizer: Any) -> str:
    """Return everything that decides how a tokenizer cuts a text."""
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    del found["truncation"], found["padding"]  # state of its last call
    return json.dumps(found)
