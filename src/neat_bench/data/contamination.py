"""How much of a test set the training rows hold: whole items, and runs of 13 words (arXiv 2005.14165, app. C)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

WORDS = 13
COMMON = 10  # a run of words in more training rows than this is boilerplate of the prompts, as in GPT-3's rule


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _words(text: str) -> list[str]:
    """Return lower-case words without punctuation."""
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str]) -> Iterator[str]:
    for at in range(len(words) - WORDS + 1):
        yield " ".join(words[at : at + WORDS])


def overlap(train: list[str], tests: dict[str, list[str]]) -> dict[str, dict[str, int]]:
    """Return for each test set how many items it has, how many training rows hold whole, and by 13-grams.

    exact: items that equal a training row but for case and white space. ngram: items that share a run of 13 words
    with a training row, runs in more than 10 training rows apart (the prompts' own wording). An item shorter than
    13 words can only count as exact.
    """
    items = {name: [(_plain(text), _words(text)) for text in texts] for name, texts in tests.items()}
    wanted = {run for texts in items.values() for _, words in texts for run in _runs(words)}
    whole = set(map(_plain, train))
    counts: Counter[str] = Counter()
    for text in train:
        counts.update({run for run in _runs(_words(text)) if run in wanted})
    shared = {run for run, count in counts.items() if count <= COMMON}
    return {
        name: {
            "items": len(texts),
            "exact": sum(plain in whole for plain, _ in texts),
            "ngram": sum(any(run in shared for run in _runs(words)) for _, words in texts),
        }
        for name, texts in items.items()
    }
