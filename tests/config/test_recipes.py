"""The shipped recipes against PAPER.md's tables, written out again here from the paper's released scripts."""

import pytest

from neat_bench.config import build, compose

NEAT_L = """
cola 0.1  1e-3 1e-3 100 64
mrpc 0.01 5e-3 5e-3 100 64
qnli 0.01 1e-3 1e-3 40 32
mnli 0.01 5e-3 5e-3 20 32
qqp  0.01 5e-3 5e-3 20 64
rte  0.01 5e-3 5e-3 100 32
sst2 0.01 5e-3 5e-3 40 32
stsb 0.1  5e-3 5e-3 100 64
"""  # task, scale, head lr, adapter lr, epochs, batch
NEAT_S = """
cola 0.1  1e-3 5e-3 100 64
mrpc 0.01 5e-3 5e-3 100 64
qnli 0.1  1e-3 1e-3 40 32
mnli 0.01 5e-3 5e-3 20 32
qqp  1.0  1e-3 1e-3 20 64
rte  1.0  1e-3 1e-3 100 32
sst2 0.01 5e-3 5e-3 40 32
stsb 0.1  1e-3 5e-3 100 64
"""
LORA = """
mnli 5e-4 30 16
sst2 5e-4 60 16
mrpc 4e-4 30 16
cola 4e-4 80 32
qnli 4e-4 25 32
qqp  5e-4 25 16
rte  5e-4 80 32
stsb 4e-4 40 16
"""  # task, lr, epochs, batch per GPU of 8
RED = """
mnli 1e-3 20
sst2 1e-3 40
mrpc 5e-3 40
cola 5e-3 40
qnli 3e-3 20
qqp  1e-3 20
rte  8e-3 40
stsb 3e-3 40
"""
VISION = """
stanford_cars   1e-2 1e-2 4e-5
cifar10         5e-3 5e-3 9e-5
cifar100        5e-3 5e-3 1e-4
eurosat         5e-3 5e-3 3e-4
fgvc_aircraft   1e-2 1e-2 7e-5
oxford_iiit_pet 5e-3 5e-3 8e-4
resisc45        1e-2 5e-3 3e-4
"""  # task, head lr, adapter lr, weight decay
MLP_TOO = ["query", "key", "value", "mlp_up", "mlp_down"]


def rows(text):
    return [(line.split()[0], *map(float, line.split()[1:])) for line in text.strip().splitlines()]


def recipe(path):
    """Return a recipe's own values, composed under the root as in a run."""
    return compose([f"recipe@_global_={path}", "dataset=packaged/gloss_polarity"])


def glue(method, task):
    config = build(compose([f"method={method}", f"dataset=glue/{task}"]))
    assert (config.model.hub_id, config.dataset.max_length) == ("FacebookAI/roberta-base", 512)
    assert (config.scheduler.name, config.scheduler.warmup_ratio) == ("linear", 0.06)
    assert type(config.optimizer).__name__ == "AdamW"
    return config


@pytest.mark.parametrize(
    ("method", "table", "rank", "layers"), [("neat", NEAT_L, 8, None), ("neat_s", NEAT_S, 1, "4:")]
)
def test_neat_on_glue(method, table, rank, layers):
    for task, scale, head_lr, lr, epochs, batch in rows(table):
        config = glue(method, task)
        assert (config.method.targets, config.method.rank, config.method.layers) == (
            ["query", "value"],
            rank,
            layers,
        )
        assert (config.method.scale, config.method.depth, config.method.activation) == (scale, 2, "relu"), task
        assert (config.optimizer.head_lr, config.optimizer.lr) == (head_lr, lr), task
        assert config.optimizer.weight_decay == 0
        assert (config.trainer.epochs, config.trainer.batch_size, config.trainer.accumulation) == (
            epochs,
            batch,
            1,
        )


def test_lora_on_glue():
    for task, lr, epochs, batch in rows(LORA):
        config = glue("lora", task)
        assert (config.method.rank, config.method.alpha, config.method.targets) == (8, 16, ["query", "value"])
        assert (config.optimizer.lr, config.optimizer.weight_decay, config.trainer.epochs) == (
            lr,
            0.1,
            epochs,
        ), task
        assert (config.trainer.batch_size, config.trainer.accumulation) == (batch, 8), task


def test_red_on_glue():
    for task, lr, epochs in rows(RED):
        config = glue("red", task)
        assert config.method.targets == ["mlp_down"]
        assert (config.optimizer.lr, config.optimizer.weight_decay) == (lr, 0.0)
        assert (config.trainer.epochs, config.trainer.batch_size) == (epochs, 32), task
        assert config.protocol.name == "split_validation"


@pytest.mark.parametrize("method", ["full", "linear_probe"])
def test_full_and_probe_come_from_robertas_grid(method):
    for task, *_ in rows(RED):
        config = glue(method, task)
        assert config.optimizer.lr in (1e-5, 2e-5, 3e-5)
        assert config.trainer.batch_size in (16, 32)
        assert config.trainer.epochs == 10


def test_metrics_and_selection_sizes_of_glue():
    metrics = {"cola": "matthews_correlation", "stsb": "pearson"}
    sizes = {"qqp": 1000, "mnli": 1000, "qnli": 1000, "mnli_mismatched": 1000}
    for task in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli_mismatched", "qnli", "rte", "wnli"):
        dataset = build(compose([f"dataset=glue/{task}"])).dataset
        assert dataset.metric == metrics.get(task, "accuracy")
        assert dataset.selection_items == sizes.get(task)
        split = {"mnli": "validation_matched", "mnli_mismatched": "validation_mismatched"}.get(task, "validation")
        assert dataset.evaluation_split == split


def test_neat_on_images():
    for task, head_lr, lr, decay in rows(VISION):
        found = recipe(f"neat/vision/{task}")
        assert (found.method.rank, found.method.scale, found.method.targets) == (7, 1.0, ["query", "value"])
        assert (found.optimizer.head_lr, found.optimizer.lr, found.optimizer.weight_decay) == (
            head_lr,
            lr,
            decay,
        )
        assert (found.trainer.epochs, found.trainer.batch_size, found.trainer.accumulation) == (10, 64, 4)
        assert found.scheduler.name == "linear"


@pytest.mark.parametrize("task", ["commonsense/commonsense_170k", "math/metamathqa"])
def test_neat_on_language_models(task):
    found = recipe(f"neat/{task}")
    assert (found.method.rank, found.method.scale, found.method.dropout) == (32, 1.0, 0.05)
    assert found.method.targets == MLP_TOO
    assert (found.optimizer.lr, found.scheduler.warmup_steps, found.dataset.max_length) == (3e-4, 100, 256)
    assert (found.trainer.epochs, found.trainer.batch_size) == (1, 16)


@pytest.mark.parametrize("task", ["commonsense/commonsense_170k", "math/math_10k"])
def test_lora_and_dora_on_language_models(task):
    lora, dora = recipe(f"lora/{task}"), recipe(f"dora/{task}")
    assert (lora.method.rank, lora.method.alpha, lora.method.dropout, lora.optimizer.lr) == (
        8,
        16,
        0.05,
        3e-4,
    )
    assert (dora.method.rank, dora.method.alpha, dora.optimizer.lr) == (32, 64, 2e-4)
    for found in (lora, dora):
        assert found.method.targets == MLP_TOO
        assert (found.trainer.epochs, found.trainer.batch_size, found.dataset.max_length) == (3, 16, 256)
    rates = {("dora", "llama3_8b"): 1e-4, ("lora", "llama3_8b"): 3e-4, ("lora", "llama2_7b"): 2e-4}
    for (method, model), lr in rates.items():
        found = compose([f"recipe@_global_=by_model/{method}/{task}/{model}"])
        assert found.optimizer.lr == lr
        if method == "lora":
            assert (found.method.rank, found.method.alpha) == (32, 64)
