"""The one error a user meets: a line that says what, where and what to do next."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """Something the user gave cannot be used. `neat_bench.cli` prints it as one line and exits with 1."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the valid name closest to `word`, else the list of valid names."""
    names = sorted(valid)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(names)}" if names else ""
