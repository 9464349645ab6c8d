"""Instruction data for causal language models: prompt and response to train on, answers to score."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neat_bench.data.answers import LETTERS, check_kind, extract_letter, final_part
from neat_bench.data.contamination import overlap
from neat_bench.data.sources import HubSource, Provenance, read_split
from neat_bench.data.spec import DatasetSpec, Split, require_columns
from neat_bench.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

SCORINGS = ("generation", "loglikelihood")
LOSSES = ("response", "prompt_and_response")
# how LLM-Adapters' commonsense prompts begin and end, whatever the question
_WORDING = re.compile(r"^Please (?:choose|answer) [^:]*:\s*")
_FORMAT = re.compile(r"Answer format:\s*(\S+)\s*$")


@dataclass
class Template:
    """How a row becomes a text: `{instruction}`, `{input}` and `{response}` are filled in."""

    with_input: str
    without_input: str
    response: str = "{response}"

    def prompt(self, instruction: str, given: str) -> str:
        """Return the prompt of one row."""
        text = self.with_input if given else self.without_input
        # not str.format: an instruction may hold braces of its own
        before, _, after = text.partition("{instruction}")
        return before + instruction + after.replace("{input}", given, 1)

    def answer(self, response: str) -> str:
        """Return what follows the prompt."""
        return self.response.replace("{response}", response, 1)


@dataclass
class Columns:
    """The columns of a table of instructions; without an answer column the answer is read out of the response."""

    instruction: str = "instruction"
    input: str | None = None
    response: str = "output"
    answer: str | None = "answer"


@dataclass
class AnswerSet:
    """A test set: its heading, the kind of its answers (choice, letter, math) and where they stand.

    answers: for choices, the words that an answer can be; an item's own options end its instruction ("Answer
    format: a/b").
    """

    label: str
    kind: str
    answers: list[str] = field(default_factory=list)
    columns: Columns = field(default_factory=Columns)
    split: str = "test"
    hub: HubSource | None = None


@dataclass(kw_only=True)
class Instructions(DatasetSpec):
    """A training file of instructions and the test sets that a model trained on it answers.

    kind, answers, columns: as in AnswerSet, of the training file (its held-out rows select). test_sets: name ->
    where; each is read from `<data>/<suite>/<name>/` or its hub repository. templates: the suite's prompts, one of
    which `template` names. response_form: what the model says around an answer; loglikelihood compares these.
    loss_on: response or prompt_and_response. max_length: tokens of prompt and response (the prompt is cut on the
    left, never the response). packing: several examples in one row of max_length, which do not attend to each
    other. scoring: generation, or loglikelihood (the option of the highest mean log-likelihood a token).
    """

    kind: str
    template: str
    templates: dict[str, Template]
    answers: list[str] = field(default_factory=list)
    columns: Columns = field(default_factory=Columns)
    response_form: str = "{answer}"
    test_sets: dict[str, AnswerSet] = field(default_factory=dict)
    loss_on: str = "response"
    max_length: int = 256
    packing: bool = False
    scoring: str = "generation"
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kind(self.kind, "dataset.kind")
        for name, answer_set in self.test_sets.items():
            check_kind(answer_set.kind, f"dataset.test_sets.{name}.kind")
        for key, valid in (("template", self.templates), ("loss_on", LOSSES), ("scoring", SCORINGS)):
            if getattr(self, key) not in valid:
                raise InputError(f"unknown dataset.{key} '{getattr(self, key)}'{nearest(getattr(self, key), valid)}")
        if self.test_sets and self.test_split is not None:
            raise InputError("a data set has either dataset.test_split or dataset.test_sets; set the other to null")
        kinds = {self.kind, *(answer_set.kind for answer_set in self.test_sets.values())}
        if self.scoring == "loglikelihood" and kinds != {"choice"}:
            raise InputError("dataset.scoring=loglikelihood chooses among options: it needs sets of kind choice only")
        if [self.metric, *self.extra_metrics] != ["accuracy"]:
            raise InputError("dataset.metric of an instruction data set is accuracy")
        if self.max_length < 8 or self.max_new_tokens < 1:
            raise InputError("dataset.max_length is at least 8 tokens and dataset.max_new_tokens at least 1")

    @property
    def chosen_template(self) -> Template:
        """The template that `template` names."""
        return self.templates[self.template]

    def reporting(self, data_root: Path) -> list[Split]:
        """Return the test sets."""
        if not self.test_sets:
            return super().reporting(data_root)
        splits = []
        for name, answer_set in self.test_sets.items():
            rows, origin = self._read_set(name, answer_set, data_root)
            splits.append(Split(name, self.as_checked(rows, name), origin))
        return splits

    def _read_set(self, name: str, answer_set: AnswerSet, data_root: Path) -> tuple[Dataset, Provenance]:
        files = None if self.files is None or name not in self.files else {answer_set.split: self.files[name]}
        rows, origin = read_split(f"{self.suite}/{name}", answer_set.split, data_root, files, answer_set.hub)
        return rows, Provenance(f"{name}/{origin.split}", *list(vars(origin).values())[1:])

    def contamination(self, train: Dataset, tests: dict[str, Dataset]) -> dict[str, dict[str, int]]:
        """Return the overlap of the training rows' questions with each test set's, the task's wording apart."""

        def questions(rows: Dataset) -> list[str]:
            texts = (f"{one} {two}".strip() for one, two in zip(rows["instruction"], rows["input"], strict=True))
            return [_FORMAT.sub("", _WORDING.sub("", text)) for text in texts]

        return overlap(questions(train), {name: questions(rows) for name, rows in tests.items()})

    def checked(self, rows: Dataset, split: str) -> dict[str, list[Any]]:
        """Return instruction, input, response, answer, kind, options and the answers to look for in a text.

        Raises InputError for missing columns, values that are no texts, empty responses, and answers that are
        not among the expected options.
        """
        own = self.test_sets.get(split) or AnswerSet("", self.kind, self.answers, self.columns)
        where, columns = f"{self.name}, split {split}", own.columns
        names = [columns.instruction, columns.input, columns.response, columns.answer]
        require_columns(rows, [name for name in names if name is not None], where)
        texts = {}
        for key, name in zip(("instruction", "input", "response", "answer"), names, strict=True):
            texts[key] = [""] * len(rows) if name is None else list(rows[name])
            for row, value in enumerate(texts[key]):
                if not isinstance(value, str) or (key in ("instruction", "response") and not value.strip()):
                    raise InputError(f"{where}, row {row}: {name} is not a text ({value!r})")
        given = list(rows["options"]) if "options" in rows.column_names else [None] * len(rows)
        options = []
        for row, instruction in enumerate(texts["instruction"]):
            answer = texts["answer"][row].strip() or self._answer_in(texts["response"][row], own.kind)
            texts["answer"][row] = answer
            options.append(self._options(own, given[row], instruction, answer, f"{where}, row {row}"))
        looked_for = [own.answers or each for each in options]
        return {**texts, "kind": [own.kind] * len(rows), "options": options, "answers": looked_for}

    @staticmethod
    def _answer_in(response: str, kind: str) -> str:
        return extract_letter(response) if kind == "letter" else final_part(response)

    @staticmethod
    def _options(own: AnswerSet, given: list[str] | None, instruction: str, answer: str, where: str) -> list[str]:
        """Return an item's options; raises InputError where the right answer is not among the expected ones."""
        if own.kind == "math":
            return []
        found = _FORMAT.search(instruction)
        options = list(LETTERS) if own.kind == "letter" else given or (found[1].split("/") if found else [])
        if not options:
            raise InputError(f"{where}: no options (an 'options' column, or 'Answer format: a/b' at the end)")
        unexpected = [option for option in options if own.answers and option not in own.answers]
        if unexpected or answer not in options:
            wrong = unexpected[0] if unexpected else answer
            raise InputError(f"{where}: '{wrong}' is not among the expected {', '.join(own.answers or options)}")
        return options
