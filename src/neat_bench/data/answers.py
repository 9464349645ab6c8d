"""What a language model's answer is: found in its text, and compared with the right one.

Kinds: `choice` (the first of a fixed list of words that occurs in the text, as LLM-Adapters defines it for
commonsense reasoning), `letter` (A to E, for AQuA), `math` (a number or expression, compared by math-verify).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from neat_bench.errors import InputError, nearest

KINDS = ("choice", "letter", "math")
LETTERS = ("A", "B", "C", "D", "E")
# where a text says that its answer comes now: GSM8K's mark, MetaMathQA's and LLM-Adapters' sentence
_MARK = re.compile(r"####|\banswer\s*(?:is|:|=)\s*:?", re.IGNORECASE)
_UNITS = re.compile(r"(?<=\d)\s*(?:\\?%|\\text\{[^}]*\}|\\?°|\^\{?\\circ\}?)|\\\$|[€£¥]")


def check_kind(kind: str, key: str) -> None:
    """Raise InputError for a kind that does not exist; `key` names it for the message."""
    if kind not in KINDS:
        raise InputError(f"unknown {key} '{kind}'{nearest(kind, KINDS)}")


def extract_choice(text: str, answers: list[str]) -> str:
    """Return the first of the answers that occurs in the text, "" if none does; longer answers win a tie."""
    pattern = "|".join(re.escape(answer) for answer in sorted(answers, key=len, reverse=True))
    match = re.search(pattern, text, re.IGNORECASE)
    if match is None:
        return ""
    return next(answer for answer in answers if answer.lower() == match[0].lower())


def extract_letter(text: str) -> str:
    """Return the letter that the text settles on: after "answer is", else its last letter standing alone."""
    marked = [match for match in _MARK.finditer(text) if re.match(r"\W*[A-E]\b", text[match.end() :])]
    if marked:
        found = re.search(r"[A-E]", text[marked[-1].end() :])
        assert found is not None
        return found[0]
    alone = re.findall(r"(?:\(([A-E])\)|(?<![\w'])([B-E])(?![\w'])|(?<![\w'])(A)(?=[).:]|\s*$))", text)
    return "".join(alone[-1]) if alone else ""


def final_part(text: str) -> str:
    r"""Return the part of a solution that states its result.

    That is the last \boxed expression, else what follows the last "####" or "answer is" up to the end of the
    sentence or line, else the whole text.
    """
    text = text.replace("\u2212", "-")
    start = text.rfind("\\boxed")
    if start >= 0:
        return f"${_balanced(text[start:])}$"
    marks = list(_MARK.finditer(text))
    if not marks:
        return text
    lines = text[marks[-1].end() :].strip().splitlines()
    return re.split(r"\.(?:\s|$)", lines[0])[0].strip() if lines else ""


def _balanced(text: str) -> str:
    """Return a \\boxed expression up to the brace that closes it."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0 and character == "}":
            return text[: at + 1]
    return text


@lru_cache(maxsize=65536)
def _parse(text: str) -> list[Any]:
    """Return math-verify's readings of a final part, [] if there is none."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    return parse(text, extraction_config=configs, raise_on_error=False)


def _plain_math(text: str) -> str:
    """Return a final part without currency, percent and degrees, so that 50%, $50 and 50 dollars are 50.

    A single dollar sign is money; two enclose LaTeX.
    """
    text = _UNITS.sub("", text)
    return text if text.count("$") % 2 == 0 else text.replace("$", "")


def extract_math(text: str) -> str:
    """Return the result that a solution states, as math-verify writes it, "" if it states none."""
    found = _parse(_plain_math(final_part(text)))
    return str(found[-1]) if found else ""


def same_math(text: str, gold: str) -> bool:
    """Say whether a solution's result equals the gold one (a number, an expression or a solution of its own)."""
    from math_verify import verify

    wanted, given = _parse(_as_math(_plain_math(final_part(gold)))), _parse(_plain_math(final_part(text)))
    return bool(wanted and given and verify(wanted, given, raise_on_error=False))


def _as_math(text: str) -> str:
    """Return a bare gold answer such as \\frac{1}{2}, 6+9i or 4,6,14 as LaTeX; a number followed by words as it is."""
    return text if "$" in text or re.search(r"\d\s+[A-Za-z]{2}", text) else f"$\\boxed{{{text}}}$"
