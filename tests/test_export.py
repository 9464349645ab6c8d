"""Adapters leave as peft's or merged, and come back."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.experiment import path_of, run
from neat_bench.export import export
from neat_bench.methods.base import attach
from neat_bench.methods.state import load_state

ROOT = Path(__file__).resolve().parents[1]
SAVING = ["model.pooling=native", "trainer.save_adapter=true"]
INPUTS = {"input_ids": torch.tensor([[101, 2204, 102], [101, 2919, 102]]), "attention_mask": torch.ones(2, 3).long()}


def trained(tiny_overrides, *more):
    """Return a finished run's record path, its config, and the model as it was saved."""
    overrides = [
        *tiny_overrides,
        "model.pooling=native",
        "trainer.save_adapter=true",
        "optimizer.lr=1e-2",
        "trainer.epochs=1",
        *more,
    ]
    config = build(compose(overrides))
    run(config, overrides)
    path = path_of(config)
    model, _, _ = config.model.load(Head, Path(config.paths.cache))
    attach(config.method, model)
    load_state(path.with_suffix(".adapter"), config.method, model)
    return path, model.eval()


class Head:
    auto_class, outputs, reads_text = "AutoModelForSequenceClassification", 2, True


@pytest.mark.parametrize("method", ["neat", "lora", "dora", "pissa", "adalora", "vera", "fourierft", "ia3"])
def test_a_run_is_exported_for_peft_and_merged_with_its_logits(tiny_overrides, tiny_folder, method):
    path, model = trained(tiny_overrides, f"method={method}")
    expected = model(**INPUTS).logits
    export(path, "peft", path.with_suffix(".peft"))
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    loaded = peft.PeftModel.from_pretrained(base, path.with_suffix(".peft")).eval()
    torch.testing.assert_close(loaded(**INPUTS).logits, expected, rtol=1e-4, atol=1e-5)
    export(path, "merged", path.with_suffix(".merged"))
    plain = AutoModelForSequenceClassification.from_pretrained(path.with_suffix(".merged")).eval()
    torch.testing.assert_close(plain(**INPUTS).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_sentence_encoder_leaves_by_itself_with_its_classifier_beside_it(tiny_overrides, tiny_folder):
    path, model = trained(tiny_overrides, "method=neat", "model.pooling=mean")
    expected = model.encoder(**INPUTS).last_hidden_state
    for to in ("peft", "merged"):
        out = path.with_suffix(f".{to}")
        export(path, to, out)
        plain = AutoModel.from_pretrained(tiny_folder if to == "peft" else out, add_pooling_layer=False)
        loaded = peft.PeftModel.from_pretrained(plain, out) if to == "peft" else plain
        torch.testing.assert_close(loaded.eval()(**INPUTS).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(load_file(out / "classifier.safetensors")["weight"], model.classifier.weight)


@pytest.mark.parametrize("method", ["neat", "lora", "dora"])
def test_an_adapter_comes_back_from_peft_and_from_a_run(tiny_overrides, tmp_path, method):
    path, model = trained(tiny_overrides, f"method={method}")
    export(path, "peft", tmp_path / "peft")
    for folder in (tmp_path / "peft", path.with_suffix(".adapter")):
        again = [*tiny_overrides, f"method={method}", f"start_from={folder}", *SAVING,
                 "optimizer.lr=0", "optimizer.weight_decay=0",
                 f"paths.results={tmp_path}/again/{folder.name}"]  # fmt: skip
        config = build(compose(again))
        record = run(config, again)
        assert len(record["model"]["start_from"]) == 64
        fresh, _, _ = config.model.load(Head, Path(config.paths.cache))
        attach(config.method, fresh)
        load_state(path_of(config).with_suffix(".adapter"), config.method, fresh)
        torch.testing.assert_close(fresh.eval()(**INPUTS).logits, model(**INPUTS).logits)


def test_what_does_not_come_back_says_why(tiny_overrides, tmp_path):
    path, _ = trained(tiny_overrides, "method=lora")
    export(path, "peft", tmp_path / "peft")

    def start(*overrides):
        config = build(compose([*tiny_overrides, *SAVING, f"start_from={tmp_path}/peft", *overrides, "rerun=true"]))
        run(config, [])

    for overrides, message in ((["method=lora", "method.rank=4"], "was trained with r=8; here it is 4"),
                               (["method=neat"], "holds a LORA adapter; neat reads PEANUT"),
                               (["method=lora", "method.targets=[query]"], "also adapts .*value"),
                               (["method=lora", "method.targets=[query,value,key]"], "has nothing for .*key"),
                               (["method=vera"], "can be read for lora, dora and neat"),
                               (["method=lora_ga"], "finds its start in training batches"),
                               (["method=lora", f"start_from={tmp_path}/nowhere"], "cannot read")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            start(*overrides)


def test_what_cannot_leave_says_why(tiny_overrides, tmp_path):
    path, _ = trained(tiny_overrides, "method=houlsby", "method.bottleneck=4")
    with pytest.raises(InputError, match="peft has no form of houlsby"):
        export(path, "peft", tmp_path / "out")
    with pytest.raises(InputError, match=r"houlsby cannot be merged here: bert\.encoder.* is no part of the plain"):
        export(path, "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path.with_suffix(".adapter").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"trainer\.save_adapter=true"):
        export(path, "merged", tmp_path / "out")


def test_the_script_says_where_it_wrote(tiny_overrides):
    path, _ = trained(tiny_overrides, "method=lora")
    script = [sys.executable, "scripts/export_adapter.py", str(path), "--to", "peft"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads((path.with_suffix(".peft") / "adapter_config.json").read_text())["r"] == 8
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "exists already" in done.stderr
