"""Trainable parameters of a run, counted without weights: the model is built on torch's meta device.

python scripts/count_parameters.py model=llama3_8b method=neat dataset=commonsense/commonsense_170k
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from neat_bench.config import build, compose
from neat_bench.errors import InputError


def main(overrides: list[str]) -> None:
    """Print what the method trains, the model's size and the share."""
    if not overrides or overrides[0] in ("-h", "--help"):
        print(__doc__)
        return
    from hydra.errors import HydraException

    try:
        config = build(compose(overrides))
        from neat_bench.data.spec import Data
        from neat_bench.methods.base import attach
        from neat_bench.tasks import make_task

        # a task's head follows from the classes; no row is needed
        task = make_task(config.dataset, Data([], [], config.dataset.class_names(), []))
        model = config.model.skeleton(task, Path(config.paths.cache))
        total = sum(parameter.numel() for parameter in model.parameters())
        attach(config.method, model)
    except (InputError, HydraException) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"{config.method.label} on {config.model.label}: {trainable:,} of {total:,} parameters train "
          f"({trainable / total:.3%})")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
