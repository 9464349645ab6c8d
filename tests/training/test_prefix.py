"""The frozen prefix: which blocks it holds, and runs that reuse it against runs that do not."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.experiment import run
from neat_bench.methods.base import attach
from neat_bench.training.prefix import FrozenPrefix, PrefixCache


@pytest.mark.parametrize("architecture", ["bert", "roberta", "vit", "dinov2", "llama", "timm"])
@pytest.mark.parametrize(("overrides", "count"), [
    (["method=linear_probe"], 3), (["method=neat", "method.layers=1:"], 1), (["method=lora", "method.layers=2:"], 2),
    (["method=lora"], 0), (["method=full"], 0), (["method=red", "method.targets=[block]", "method.layers=1:2"], 1),
])  # fmt: skip
def test_the_prefix_ends_below_the_first_trained_block(make_model, architecture, overrides, count):
    if (architecture, overrides[0]) == ("llama", "method=linear_probe"):
        pytest.skip("the method does not apply to this model")
    model, _ = make_model(architecture)
    attach(build(compose(overrides)).method, model)
    assert len(FrozenPrefix(model).blocks) == count


def test_embeddings_that_train_leave_nothing_to_keep(make_model):
    model, _ = make_model("bert")
    attach(build(compose(["method=bitfit"])).method, model)  # the embedding's norm has a bias
    assert FrozenPrefix(model).blocks == []


@pytest.mark.parametrize("method", [["method=linear_probe"], ["method=neat", "method.layers=1:"]])
def test_a_run_that_keeps_the_prefix_gives_the_scores_and_weights_of_one_that_does_not(
    tiny_overrides, tiny_folder, tmp_path, method
):
    """With dropout off everywhere; keeping changes how batches are put together, so nearly the same, not the bits."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    states, records, passes = [], [], []
    for keep in (False, True):
        overrides = [
            *tiny_overrides, *method, f"model.path={tmp_path}/model", f"trainer.cache_frozen_prefix={keep}",
            "trainer.epochs=3",
            "trainer.save_adapter=true", f"paths.results={tmp_path}/{keep}",
        ]  # fmt: skip
        records.append(run(build(compose(overrides)), []))
        states.append(load_file(next((tmp_path / str(keep)).rglob("adapter.safetensors"))))
        passes.append(records[-1]["cost"]["cached_blocks"])
    assert passes == [0, 3 if method == ["method=linear_probe"] else 1]
    assert records[0]["config"]["trainer"]["cache_frozen_prefix"] is False
    for name, value in states[0].items():
        difference = states[1][name] - value
        assert difference.abs().max() < 1e-5, name
        assert difference.mean().abs() < 1e-6
    assert records[0]["results"] == records[1]["results"]
    assert not list((tmp_path / "cache").glob("prefix-*"))


def test_blocks_run_in_the_first_epoch_only(make_model, tmp_path):
    model, inputs = make_model("bert", torch.float32)
    attach(build(compose(["method=neat", "method.layers=2:"])).method, model)
    rows = Dataset.from_dict({"id": [4, 9], "length": [5, 3]})
    prefix = FrozenPrefix(model)
    cache = PrefixCache(prefix, rows, tmp_path, 1.0)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    batch = inputs | {"attention_mask": mask, "id": torch.tensor([4, 9])}
    calls = []
    prefix.blocks[0].attention.register_forward_hook(lambda *_: calls.append(1))
    inside = {name: value for name, value in batch.items() if name != "id"}
    with cache.reusing(batch):
        first = model(**inside).logits
    assert len(calls) == 1
    with cache.reusing(batch):
        second = model(**inside).logits
    assert len(calls) == 1
    torch.testing.assert_close(second, first)
    turned = {name: value.flip(0) for name, value in batch.items()}
    with cache.reusing(turned):
        third = model(**{name: value for name, value in turned.items() if name != "id"}).logits
    torch.testing.assert_close(third.flip(0), first)
    assert model(**inside).logits.shape == first.shape
    assert len(calls) == 2


def test_what_cannot_be_kept_is_an_error(make_model, tmp_path):
    model, inputs = make_model("bert", torch.float32)
    attach(build(compose(["method=linear_probe"])).method, model)
    prefix = FrozenPrefix(model)
    with pytest.raises(InputError, match="augmentation=none"):
        PrefixCache(prefix, Dataset.from_dict({"id": [0], "length": [1], "image": [b""]}), tmp_path, 1.0)
    cache = PrefixCache(prefix, Dataset.from_dict({"id": [0, 1], "length": [5, 5]}), tmp_path, 1e-7)
    too_much = pytest.raises(InputError, match=r"raise trainer\.prefix_cache_gb")
    with too_much, cache.reusing({**inputs, "id": torch.arange(2)}):
        model(**inputs)
    with pytest.raises(InputError, match="exclude each other"):
        build(compose(["trainer.cache_frozen_prefix=true", "trainer.compile=true"]))
