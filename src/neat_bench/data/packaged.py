"""Data sets made from files that PyPI packages carry: no hub, no account, real data."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from neat_bench.data.sources import Provenance, sha256_of_rows
from neat_bench.data.text import TextClassification
from neat_bench.packages import package_file

if TYPE_CHECKING:
    from datasets import Dataset

LEXICON = "textblob/en/en-sentiment.xml"
LEXICON_SHA256 = "0ca603db55570bab9b2865716a3696ede01e3da02b570c47628a9dbcc3b37d1e"
EVALUATION_SHARE = 0.25
SPLIT_SEED = 0


@dataclass(kw_only=True)
class GlossPolarity(TextClassification):
    """Is a word sense positive or negative? From the sentiment lexicon that TextBlob ships.

    Text is "word: gloss", the label says whether the human polarity is above 0; neutral senses and
    senses without a gloss are dropped (1,846 remain). Words, not senses, are split 75/25 with a fixed
    seed, so no word form is in both splits. Origin: T. De Smedt and W. Daelemans, Pattern, with WordNet
    3 glosses; the file's header states the licence PDDL.
    """

    def read(self, split: str, data_root: Path) -> tuple[Dataset, Provenance]:
        """Return the senses of the split's words in the lexicon's order."""
        from datasets import Dataset

        path = package_file("textblob", LEXICON, LEXICON_SHA256)
        senses = [
            word.attrib
            for word in ElementTree.parse(path).getroot()
            if float(word.attrib["polarity"]) != 0 and word.attrib.get("sense")
        ]
        words = sorted({sense["form"] for sense in senses})
        random.Random(SPLIT_SEED).shuffle(words)
        held_out = set(words[: int(EVALUATION_SHARE * len(words))])
        chosen = [sense for sense in senses if (sense["form"] in held_out) == (split == self.evaluation_split)]
        rows = Dataset.from_dict(
            {
                "text": [f"{sense['form']}: {sense['sense']}" for sense in chosen],
                "label": [int(float(sense["polarity"]) > 0) for sense in chosen],
            }
        )
        return rows, Provenance(split, f"textblob:{LEXICON}", len(rows), sha256_of_rows(rows))
