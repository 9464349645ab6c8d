"""Where rows come from, and what is said when they cannot be used."""

import time

import numpy as np
import pandas as pd
import pytest

from conftest import SHARED
from neat_bench.config import build, compose
from neat_bench.data.sources import HubSource, read_split
from neat_bench.data.text import TextClassification
from neat_bench.errors import InputError

ROWS = pd.DataFrame({"sentence": ["a b", "c", "d e f"], "label": [0, 1, 0], "idx": [0, 1, 2]})


def dataset(**options):
    defaults = {"name": "own/words", "text": ["sentence"], "classes": ["no", "yes"]}
    return TextClassification(**(defaults | options))


def test_a_parquet_under_the_data_root_comes_first(tmp_path):
    folder = tmp_path / "glue" / "sst2"
    folder.mkdir(parents=True)
    ROWS.to_parquet(folder / "train.parquet")
    rows, origin = read_split("glue/sst2", "train", tmp_path, None, HubSource("nobody/nothing"))
    assert rows["sentence"][:] == list(ROWS["sentence"])
    assert (origin.origin, origin.rows, len(origin.sha256)) == ("glue/sst2/train.parquet", 3, 64)


def test_the_hub_path_loads_a_repository_of_the_same_layout(tmp_path):
    """A local stand-in for nyu-mll/glue: parquet files in a configuration's folder."""
    repo = tmp_path / "glue"
    (repo / "sst2").mkdir(parents=True)
    ROWS.to_parquet(repo / "sst2" / "train-00000-of-00001.parquet")
    ROWS[:2].to_parquet(repo / "sst2" / "validation-00000-of-00001.parquet")
    card = "configs:\n- config_name: sst2\n  data_files:\n"
    card += "".join(f"  - split: {s}\n    path: sst2/{s}-*\n" for s in ("train", "validation"))
    (repo / "README.md").write_text(f"---\n{card}---\n")
    data = dataset(hub=HubSource(str(repo), "sst2")).load(tmp_path / "none", None, None)
    assert data.train["text_a"][:] == list(ROWS["sentence"])
    assert data.evaluation["label"][:] == [0, 1]
    assert [origin.rows for origin in data.provenance] == [3, 2]


def test_an_unreachable_hub_answers_fast_and_says_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"cannot reach the hub.*put the split at .*train\.parquet.*HF_HUB_OFFLINE=1"):
        read_split("glue/sst2", "train", tmp_path, None, HubSource("nyu-mll/glue", "sst2"))
    assert time.monotonic() - started < 10


def test_without_file_and_hub_the_error_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"put the split at .*own/words/train\.parquet"):
        dataset().load(tmp_path, None, None)


def write(tmp_path, frame, **options):
    frame.to_csv(tmp_path / "rows.csv", index=False)
    path = str(tmp_path / "rows.csv")
    return dataset(files={"train": path, "validation": path}, **options)


def test_class_names_in_a_csv_become_indices(tmp_path):
    frame = ROWS.assign(label=["yes", "no", "yes"])
    assert write(tmp_path, frame).load(tmp_path, None, None).train["label"][:] == [1, 0, 1]


def test_regression_labels_are_floats(tmp_path):
    frame = ROWS.assign(label=[1, 2.5, 4])
    assert write(tmp_path, frame, classes=None).load(tmp_path, None, None).train["label"][:] == [
        1.0,
        2.5,
        4.0,
    ]


def test_limits_keep_the_first_rows(tmp_path):
    data = write(tmp_path, ROWS).load(tmp_path, 2, 1)
    assert (len(data.train), len(data.evaluation)) == (2, 1)


@pytest.mark.parametrize(("frame", "options", "message"), [
    (ROWS.drop(columns="sentence"), {}, "no column 'sentence'; it has label, idx"),
    (ROWS.drop(columns="label"), {}, "no column 'label'"),
    (ROWS.assign(label=[0, 1, 2]), {}, "row 2: label 2 is not 0 to 1 or one of no, yes"),
    (ROWS.assign(label=-1), {}, "no public labels"),
    (ROWS.assign(label=["yes", "no", "maybe"]), {}, "label 'maybe'"),
    (ROWS.assign(label=["1", "2", "x"]), {"classes": None}, "label '1' is not a number"),
    (ROWS[:0], {}, "no rows"),
    (ROWS.assign(sentence=[1, 2, 3]), {}, "row 0: sentence is not a text"),
])  # fmt: skip
def test_bad_rows_are_named(tmp_path, frame, options, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path, frame, **options).load(tmp_path, None, None)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    for name, message in (("broken.parquet", "cannot be read as parquet"), ("none.csv", "does not exist"),
                          ("data.txt", "ends in .parquet, .csv, .json")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            dataset(files={"train": str(tmp_path / name)}).load(tmp_path, None, None)
    with pytest.raises(InputError, match="has no entry 'validation'"):
        write(tmp_path, ROWS).__class__(
            name="own/words",
            text=["sentence"],
            classes=["a", "b"],
            files={"train": str(tmp_path / "rows.csv")},
        ).load(tmp_path, None, None)


@pytest.mark.parametrize(("options", "message"), [
    ({"text": []}, "one column or two"), ({"metric": "acuracy"}, "did you mean 'accuracy'"),
    ({"classes": ["one"]}, "at least two"), ({"name": "words"}, "suite/task"), ({"max_length": 1}, "max_length"),
])  # fmt: skip
def test_bad_descriptions_are_named(options, message):
    with pytest.raises(InputError, match=message):
        dataset(**options)


def test_gloss_polarity_is_the_lexicon_split_by_word(tmp_path):
    config = build(compose([]))
    data = config.dataset.load(tmp_path, None, None)
    assert (len(data.train), len(data.evaluation)) == (1382, 464)
    words = [{text.partition(": ")[0] for text in split["text_a"]} for split in (data.train, data.evaluation)]
    assert not words[0] & words[1]
    assert 0.4 < np.mean(data.train["label"][:]) < 0.6
    again = config.dataset.load(tmp_path, None, None)
    assert [o.sha256 for o in again.provenance] == [o.sha256 for o in data.provenance]


REAL = {"cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500),
        "mnli": (9999, 9815), "qnli": (9999, 5463), "rte": (2490, 277)}  # fmt: skip


@pytest.mark.parametrize("task", REAL)
def test_real_glue_files_load_under_their_configs(task):
    if not (SHARED / "glue" / task).exists():
        pytest.skip("the real GLUE files are not on this machine")
    data = build(compose([f"dataset=glue/{task}"])).dataset.load(SHARED, None, None)
    assert (len(data.train), len(data.evaluation)) == REAL[task]
    if task == "stsb":
        assert max(data.train["label"]) == 5.0
    else:
        assert set(data.train["label"]) == set(range(len(data.classes)))


def test_a_named_subset_draws_training_rows_of_another_sets_files(tmp_path):
    folder = tmp_path / "own" / "words"
    folder.mkdir(parents=True)
    rows = pd.DataFrame({"sentence": [f"row {i}" for i in range(50)], "label": [0, 1] * 25})
    rows.to_parquet(folder / "train.parquet")
    rows[:6].to_parquet(folder / "validation.parquet")
    options = {"name": "own/words_20", "subset_of": "own/words", "subset_items": 20}
    small = dataset(**options).load(tmp_path, None, None)
    texts = small.train["text_a"][:]
    assert len(set(texts)) == 20
    assert len(small.evaluation) == 6
    assert texts == sorted(texts, key=lambda text: int(text.split()[1])) != [f"row {i}" for i in range(20)]
    assert texts == dataset(**options).load(tmp_path, None, None).train["text_a"][:]
    held = dataset(**options, evaluation_split=None, holdout=5).load(tmp_path, None, None)
    assert len(held.train) == 15
    assert set(held.train["text_a"]) | set(held.evaluation["text_a"]) == set(texts)
    with pytest.raises(InputError, match="subset_items=60, but own/words has 50 rows"):
        dataset(**options | {"subset_items": 60}).load(tmp_path, None, None)


@pytest.mark.parametrize("options", [{"subset_items": 5}, {"subset_of": "own/words", "subset_items": 5}])
def test_a_subset_does_not_go_by_the_name_of_the_whole(options):
    with pytest.raises(InputError, match="a subset of the training rows has a name of its own"):
        dataset(**options)
