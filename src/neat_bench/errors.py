"""The one error a user meets: a line that says what, where and what to do next."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """Something the user gave cannot be used. `neat_bench.cli` prints it as one line and exits with 1."""


class StoppedBySignal(Exception):
    """A run that a signal ended after it had saved a checkpoint; the same command goes on from there."""

    def __init__(self, number: int, step: int | None = None) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"stopped by signal {number}{after}; the same command goes on from there")
        self.number = number


MOST_NAMES = 20  # of a list of valid names in a message


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the valid name closest to `word`, else the list of valid names."""
    names = sorted(valid)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    shown = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"... ({len(names)} in all)"]
    return f"; valid: {', '.join(shown)}" if names else ""
