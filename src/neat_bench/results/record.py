"""The run record: everything a reader needs to trust, repeat or doubt a number."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from neat_bench.evaluation.metrics import metric
from neat_bench.files import sha256_of_text

SCHEMA = 1
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "numpy",
    "scikit-learn",
    "scipy",
    "timm",
    "math-verify",
)
# code that cannot change a measured number
_OUTSIDE_THE_RESULT = ("results", "cli.py", "sweep.py")


def config_hash(config: dict[str, Any]) -> str:
    """Return 12 hexadecimal digits for a config's plain data; it names the run's folder."""
    return sha256_of_text(json.dumps(config, sort_keys=True))[:12]


def code_hash() -> str:
    """Return a hash of the package's source files that take part in a run."""
    root = Path(__file__).resolve().parents[1]
    parts = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] not in _OUTSIDE_THE_RESULT:
            parts.append(f"{relative.as_posix()}\n{path.read_text()}")
    return sha256_of_text("\n".join(parts))[:12]


def _git(*arguments: str) -> str | None:
    """Return git's answer about this checkout, or None outside one."""
    root = Path(__file__).resolve().parents[3]
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment(device: str, processes: int) -> dict[str, Any]:
    """Return code version, package versions and hardware; nothing that names a person or a machine."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    status = _git("status", "--porcelain", "--untracked-files=no")
    cuda = torch.cuda.get_device_name() if device.startswith("cuda") else None
    threads = torch.get_num_threads()
    return {
        "code": {"commit": _git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)},
        "packages": packages,
        "python": platform.python_version(),
        "device": cuda or f"{device} ({platform.machine()}, {threads} thread{'s' if threads > 1 else ''})",
        "processes": processes,
    }


def peak_memory(device: str) -> dict[str, Any]:
    """Return the peak memory in bytes and what was counted.

    On CUDA the allocator's peak since the start of the process, else the process's peak resident set,
    which includes the interpreter and its libraries.
    """
    import torch

    if device.startswith("cuda"):
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "peak_memory_kind": "cuda allocated"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_kind": "process resident"}


def flags(
    predictions: np.ndarray, labels: np.ndarray, options: np.ndarray | None, main_metric: str = "accuracy"
) -> list[str]:
    """Return what is wrong with a run's predictions: "constant_prediction", "at_chance", "not_finite".

    options: among how many answers each item chooses, None for open answers. A run that chooses is at chance if by
    its main metric it is no better than always giving the commonest label or, by accuracy, than guessing.
    """
    found = []
    if predictions.dtype.kind == "f" and not np.isfinite(predictions).all():
        found.append("not_finite")
    if len(set(predictions.tolist())) == 1 and len(set(labels.tolist())) > 1:
        found.append("constant_prediction")
    if options is not None:
        commonest = Counter(labels.tolist()).most_common(1)[0][0]
        if main_metric == "accuracy":  # of answer texts as well
            reached = (predictions == labels).mean()
            chance = max((labels == commonest).mean(), (1 / options).mean())
        else:
            score = metric(main_metric)
            reached, chance = score(predictions, labels), score(np.full_like(labels, commonest), labels)
        if reached <= chance:
            found.append("at_chance")
    return found
