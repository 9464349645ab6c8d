"""Instruction data: columns, options, splits, contamination, and the real test sets."""

import json

import pandas as pd
import pytest

from conftest import SHARED
from neat_bench.config import build, compose
from neat_bench.data.answers import same_math
from neat_bench.data.contamination import overlap
from neat_bench.errors import InputError

CHOICE = (
    "Please choose the correct answer to the question: Which? Answer1: a. Answer2: b. Answer format: answer1/answer2"
)


def spec_of(*overrides):
    return build(compose(["dataset=commonsense/commonsense_170k", *overrides])).dataset


def write(root, name, answer="answer1", instruction=CHOICE, rows=4):
    (root / "commonsense" / name).mkdir(parents=True, exist_ok=True)
    row = {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}
    split = "train" if name == "commonsense_170k" else "test"
    (root / "commonsense" / name / f"{split}.json").write_text(json.dumps([row] * rows))


@pytest.fixture
def one_set(tmp_path):
    write(tmp_path, "commonsense_170k", rows=10)
    write(tmp_path, "own")
    return tmp_path


def load(root, *overrides):
    config = compose(["dataset=commonsense/commonsense_170k", "dataset.holdout=2", *overrides])
    config.dataset.test_sets = {"own": {"label": "Own", "kind": "choice", "answers": ["answer1", "answer2"]}}
    return build(config).dataset.load(root, None, None)


def test_held_out_rows_select_and_test_sets_report(one_set):
    data = load(one_set)
    assert (len(data.train), len(data.evaluation)) == (8, 6)
    assert data.selects.tolist() == [True] * 2 + [False] * 4
    assert data.evaluation["options"][0] == ["answer1", "answer2"]
    assert data.contamination == {"own": {"items": 4, "exact": 4, "ngram": 0}}


@pytest.mark.parametrize(("answer", "instruction", "message"), [
    ("answer7", CHOICE, "own, row 0: 'answer7' is not among the expected answer1, answer2"),
    ("answer1", CHOICE + "/answer9", "'answer9' is not among the expected"),
    ("answer1", "Which?", "no options"),
    ("answer1", " ", "instruction is not a text"),
])  # fmt: skip
def test_an_answer_set_without_the_expected_options_is_an_error(one_set, answer, instruction, message):
    write(one_set, "own", answer, instruction)
    with pytest.raises(InputError, match=message):
        load(one_set)


@pytest.mark.parametrize(("override", "message"), [
    ("dataset.template=alpaka", "did you mean 'alpaca'"),
    ("dataset.loss_on=prompt", "unknown dataset.loss_on"),
    ("dataset.scoring=likelihood", "unknown dataset.scoring"),
    ("dataset.kind=maths", "did you mean 'math'"),
    ("dataset.metric=f1", "metric of an instruction data set is accuracy"),
    ("dataset.test_split=test", "either dataset.test_split or dataset.test_sets"),
    ("dataset.evaluation_split=validation", "either dataset.evaluation_split or dataset.holdout"),
])  # fmt: skip
def test_bad_descriptions_are_named(override, message):
    with pytest.raises(InputError, match=message):
        spec_of(override)


def test_overlap_counts_whole_items_and_runs_of_words():
    run = " ".join(f"word{i}" for i in range(13))
    train = ["3 + 4 =", f"once {run} said", "Tom has TWO  apples"]
    tests = {"a": ["3 - 4 =", "tom has two apples"], "b": [f"now {run}!", "short"]}
    found = overlap(train, tests)
    assert found == {"a": {"items": 2, "exact": 1, "ngram": 0}, "b": {"items": 2, "exact": 0, "ngram": 1}}
    assert overlap(train + [f"{i} {run}" for i in range(10)], tests)["b"]["ngram"] == 0, "boilerplate does not count"


@pytest.mark.parametrize("name", ["chain_sum", "gsm_symbolic", "gloss_choice"])
def test_packaged_splits_share_no_question(name, tmp_path):
    spec = build(compose([f"dataset=packaged/{name}"])).dataset
    data = spec.load(tmp_path, None, None)
    again = spec.load(tmp_path, None, None)
    assert data.train[:] == again.train[:]
    splits = [data.train["instruction"][:]]
    splits += [
        [q for q, s in zip(data.evaluation["instruction"], data.selects, strict=True) if s == part]
        for part in (True, False)
    ]
    for at, questions in enumerate(splits):
        assert len(questions) > 50
        for other in splits[at + 1 :]:
            assert not set(questions) & set(other)
    if spec.kind == "math":
        assert len(set(splits[0])) == len(splits[0])
        assert all(same_math(row["response"], row["answer"]) for row in data.train.select(range(50)))
    else:
        words = [set(data.train["answer"][:]), set(data.evaluation["answer"][:])]
        assert not words[0] & words[1]


@pytest.mark.skipif(not SHARED.exists(), reason="the real test sets are not on this machine")
def test_the_real_test_sets_load_and_their_overlap_is_found():
    train = SHARED / "commonsense" / "ARC-Easy" / "train.parquet"
    data = spec_of(f"dataset.files={{train: {train}}}").load(SHARED, None, None)
    sizes = pd.Series(data.sets).value_counts().to_dict()
    assert sizes == {"validation": 120, "boolq": 3270, "piqa": 1838, "social_i_qa": 1954, "hellaswag": 1000,
                     "winogrande": 1267, "ARC-Easy": 2376, "ARC-Challenge": 1172, "openbookqa": 500}  # fmt: skip
    assert data.contamination["ARC-Easy"]["exact"] == 2
    assert all(data.contamination[name]["exact"] == 0 for name in ("boolq", "piqa", "winogrande"))


@pytest.mark.skipif(not SHARED.exists(), reason="the real test sets are not on this machine")
def test_solutions_of_the_real_sets_agree_with_their_answers():
    data = build(compose(["dataset=math/metamathqa"])).dataset
    for name, wanted in (("gsm8k", 1.0), ("MATH", 0.98)):
        answer_set = data.test_sets[name]
        rows = data.as_checked(data._read_set(name, answer_set, SHARED)[0].select(range(200)), name)
        agree = [same_math(row["response"], row["answer"]) for row in rows]
        assert sum(agree) / len(agree) >= wanted
