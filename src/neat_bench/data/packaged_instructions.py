"""Instruction sets from installed packages, split so that no question is in two splits."""

from __future__ import annotations

import importlib
import random
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree import ElementTree

from neat_bench.data.instructions import Instructions
from neat_bench.data.packaged import LEXICON, LEXICON_SHA256, SPLIT_SEED
from neat_bench.data.sources import Provenance, sha256_of_rows
from neat_bench.errors import InputError
from neat_bench.packages import package_file

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class PackagedInstructions(Instructions):
    """Cuts a shuffled list of items into validation, test and train (the rest, or `train_items` of it)."""

    train_items: int | None = None
    validation_items: int = 100
    test_items: int = 300

    origin: ClassVar[str]

    def items(self, count: int | None) -> list[dict[str, Any]]:
        """Return the items in a fixed random order, distinct by question: all of them, or at least `count`."""
        raise NotImplementedError

    def cut(self, items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Return the splits' items."""
        held = self.validation_items + self.test_items
        end = None if self.train_items is None else held + self.train_items
        return {
            "validation": items[: self.validation_items],
            "test": items[self.validation_items : held],
            "train": items[held:end],
        }

    def read(self, split: str, data_root: Path) -> tuple[Dataset, Provenance]:
        """Return the split's rows: instruction, output, answer and, for choices, options."""
        from datasets import Dataset

        wanted = self.train_items and self.train_items + self.validation_items + self.test_items
        parts = self.cut(self.items(wanted))
        if split not in parts:
            raise InputError(f"{self.name} has the splits {', '.join(parts)}, not '{split}'")
        rows = Dataset.from_list(parts[split])
        return rows, Provenance(split, self.origin, len(rows), sha256_of_rows(rows))


def _generator(module: str, class_name: str, config_name: str, **options: Any) -> Any:
    """Return a data set of reasoning-gym's, importing only the module that makes it.

    The package's own __init__ imports every generator and with them a dozen packages, some of which must be
    compiled; a bare stand-in for it lets the one module be imported alone.
    """
    root = package_file("reasoning-gym", "reasoning_gym/__init__.py").parent
    for name, folder in (("reasoning_gym", root), ("reasoning_gym.arithmetic", root / "arithmetic")):
        if name not in sys.modules:
            stand_in = types.ModuleType(name)
            stand_in.__path__ = [str(folder)]
            sys.modules[name] = stand_in
    importlib.import_module("reasoning_gym.coaching")  # first, or it and the factory import each other in a circle
    found = importlib.import_module(f"reasoning_gym.arithmetic.{module}")
    return getattr(found, class_name)(getattr(found, config_name)(**options))


@dataclass(kw_only=True)
class ReasoningGym(PackagedInstructions):
    """Problems that reasoning-gym generates with a fixed seed, without repeated questions."""

    train_items: int | None = 2000
    origin: ClassVar[str] = "reasoning-gym"

    def problems(self, size: int) -> Any:
        """Return reasoning-gym's data set of so many problems."""
        raise NotImplementedError

    def row(self, problem: dict[str, Any]) -> dict[str, Any]:
        """Return a problem as a row."""
        raise NotImplementedError

    def items(self, count: int | None) -> list[dict[str, Any]]:
        """Return `count` problems, the repeated ones left out; raises InputError if there are not so many."""
        assert count is not None
        problems = self.problems(4 * count)
        distinct = {problem["question"]: problem for problem in map(problems.__getitem__, range(4 * count))}
        if len(distinct) < count:
            raise InputError(f"{self.name}: only {len(distinct)} distinct problems; lower dataset.train_items")
        return [self.row(problem) for problem in list(distinct.values())[:count]]


@dataclass(kw_only=True)
class ChainSum(ReasoningGym):
    """Sums and differences of `terms` numbers of `digits` digits (each a smallest and a largest): "12 - 5 + 40 ="."""

    terms: list[int]
    digits: list[int]

    def problems(self, size: int) -> Any:
        """Return the sums."""
        limits = {"min_terms": self.terms[0], "max_terms": self.terms[1]}
        limits |= {"min_digits": self.digits[0], "max_digits": self.digits[1]}
        return _generator("chain_sum", "ChainSumDataset", "ChainSumConfig", seed=SPLIT_SEED, size=size, **limits)

    def row(self, problem: dict[str, Any]) -> dict[str, Any]:
        """Return expression and result."""
        answer = problem["answer"]
        return {"instruction": problem["question"], "output": answer, "answer": answer}


@dataclass(kw_only=True)
class GSMSymbolic(ReasoningGym):
    """Word problems from GSM8K's templates with new names and numbers, with a worked solution."""

    def problems(self, size: int) -> Any:
        """Return the problems."""
        names = ("gsm_symbolic.gsm_symbolic", "GSMSymbolicDataset", "GSMSymbolicDatasetConfig")
        return _generator(*names, seed=SPLIT_SEED, size=size)

    def row(self, problem: dict[str, Any]) -> dict[str, Any]:
        """Return question, worked solution (it ends in "#### result") and result."""
        solution = problem["metadata"]["answer_cot"]
        return {"instruction": problem["question"], "output": solution, "answer": problem["answer"]}


@dataclass(kw_only=True)
class GlossChoice(PackagedInstructions):
    """Which of four words of one part of speech fits a definition? From the lexicon of packaged/gloss_polarity.

    Word forms, not senses, are split, and an item's three distractors come from the same split, so no word is in
    two splits. Training senses whose gloss a held-out synonym shares are dropped, so no definition is either.
    """

    origin: ClassVar[str] = f"textblob:{LEXICON}"
    choices: int = 4

    def items(self, count: int | None) -> list[dict[str, Any]]:
        """Return every sense of the lexicon that has a gloss, grouped by word form, forms in random order."""
        path = package_file("textblob", LEXICON, LEXICON_SHA256)
        senses = [word.attrib for word in ElementTree.parse(path).getroot() if word.attrib.get("sense")]
        forms = sorted({sense["form"] for sense in senses})
        random.Random(SPLIT_SEED).shuffle(forms)
        place = {form: at for at, form in enumerate(forms)}
        return sorted(senses, key=lambda sense: place[sense["form"]])

    def cut(self, items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Return the splits' questions; a split ends where a word form does."""
        ends = [self.validation_items, self.validation_items + self.test_items]
        for index, end in enumerate(ends):
            while items[end]["form"] == items[end - 1]["form"]:
                end += 1
            ends[index] = end
        parts = {"validation": items[: ends[0]], "test": items[ends[0] : ends[1]], "train": items[ends[1] :]}
        for name, held_out in (("test", ("validation",)), ("train", ("validation", "test"))):
            seen = {sense["sense"].strip().lower() for other in held_out for sense in parts[other]}
            parts[name] = [sense for sense in parts[name] if sense["sense"].strip().lower() not in seen]
        parts["train"] = parts["train"][: self.train_items]
        return {name: self._questions(name, senses) for name, senses in parts.items()}

    def _questions(self, split: str, senses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        generator = random.Random(f"{SPLIT_SEED} {split}")
        words: dict[str, list[str]] = {}
        for sense in senses:
            words.setdefault(sense["pos"], []).append(sense["form"])
        by_part_of_speech = {pos: sorted(set(forms)) for pos, forms in words.items()}
        meanings: dict[str, set[str]] = {}
        for sense in senses:
            meanings.setdefault(sense["sense"], set()).add(sense["form"])
        rows = []
        for sense in senses:
            others = [w for w in by_part_of_speech[sense["pos"]] if w not in meanings[sense["sense"]]]
            if len(others) < self.choices - 1:
                continue
            options = [sense["form"], *generator.sample(others, self.choices - 1)]
            generator.shuffle(options)
            question = f"Definition: {sense['sense']}\nWord:"
            rows.append({"instruction": question, "output": sense["form"], "answer": sense["form"], "options": options})
        return rows
