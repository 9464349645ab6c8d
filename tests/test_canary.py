"""The pinned run: if a new version moves its losses, find out why before storing new ones.

Every recorded result may have moved as well.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from neat_bench.canary import TOLERANCE, measure, moved, read_stored

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("method", read_stored()["losses"])
def test_the_first_losses_on_the_embedded_default_are_the_stored_ones(method):
    losses, packages = measure(method)
    assert moved(losses, read_stored()["losses"][method]) <= TOLERANCE
    assert {"torch", "transformers"} <= packages.keys()


def test_a_loss_that_moves_is_seen():
    assert moved([0.5, 0.4], [0.5, 0.4003]) == pytest.approx(3e-4)
    assert moved([0.5], [0.5, 0.4]) == float("inf")


def test_the_script_says_which_losses_are_as_stored():
    done = subprocess.run([sys.executable, "scripts/canary.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as stored") == len(read_stored()["losses"])
