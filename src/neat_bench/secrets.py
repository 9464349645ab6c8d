"""Secrets kept out of records, logs and W&B: whatever looks like one is replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "<secret>"
_NAMES = re.compile(r"(^|_|\.)(api_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}"
    r"|wandb_v\d_\w{20,})\b"
)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_ASSIGNED = re.compile(r"(?i)\b([\w.]*(?:api_?key|token|secret|password))=(?!<secret>)[^\s,&}]+")
SHORTEST = 8  # a shorter value of a variable would be found in ordinary words


def _of_environment() -> list[str]:
    """Return the values of the environment's variables that are named like secrets, longest first."""
    found = {value for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def redacted_text(text: str) -> str:
    """Return a text without the secrets of the environment, known kinds of keys, and passwords in addresses."""
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    text = _ASSIGNED.sub(rf"\1={HIDDEN}", text)
    return _IN_ADDRESS.sub(HIDDEN, _SHAPES.sub(HIDDEN, text))


def redacted(value: Any) -> Any:
    """Return plain data whose texts, and whose values under the name of a secret, are redacted."""
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(each, str) and _NAMES.search(str(key)) else redacted(each)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(each) for each in value]
    return value
