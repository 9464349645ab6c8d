"""A small run with pinned losses: it notices when a dependency moves the numbers.

The values are of torch 2.13.0 and transformers 5.23.0 on a CPU. If a new version moves them, find out why
before pinning new ones: every recorded result may have moved as well.
"""

import pytest

from neat_bench.config import build, compose
from neat_bench.experiment import run

LOSSES = {
    "neat": [0.73496, 0.72924, 0.72417, 0.7097],
    "lora": [0.73496, 0.72924, 0.71867, 0.70338],
    "full": [0.73496, 0.72924, 0.67198, 0.65435],
}


@pytest.mark.parametrize("method", LOSSES)
def test_the_first_losses_on_the_embedded_default_are_the_pinned_ones(method, tmp_path):
    folders = [f"paths.{name}={tmp_path}/{name}" for name in ("results", "cache", "logs")]
    overrides = ["trainer=check", "trainer.evaluate_every=1", "trainer.device=cpu", "logger=none", "scheduler=constant"]
    config = build(compose([f"method={method}", *overrides, *folders]))
    losses = [scores["train_loss"] for scores in run(config, [])["history"]]
    assert losses == pytest.approx(LOSSES[method], abs=2e-4)
