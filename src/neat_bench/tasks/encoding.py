"""Rows encoded once: tokenised or decoded data is cached by its content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neat_bench.files import sha256_of_bytes

if TYPE_CHECKING:
    from datasets import Dataset


def cached_map(
    rows: Dataset, function: Callable[[Any], dict[str, Any]], content: bytes, cache: Path, batched: bool = False
) -> Dataset:
    """Return the rows as `function` encodes them, with their `id`; kept under `cache` by a hash of `content`."""
    key = sha256_of_bytes(content)[:32]
    cache.mkdir(parents=True, exist_ok=True)
    return rows.map(
        function,
        batched=batched,
        remove_columns=[name for name in rows.column_names if name != "id"],
        cache_file_name=str(cache / f"{key}.arrow"),
        new_fingerprint=key,
        desc=None,
    )


def vocabulary_of(tokenizer: Any) -> str:
    """Return everything that decides how a tokenizer cuts a text."""
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    del found["truncation"], found["padding"]  # state of its last call
    return json.dumps(found)
