"""The command line: Hydra composes, `experiment.run` runs, and whatever goes wrong is said in one line."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from neat_bench.errors import InputError, nearest

CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "configs")


@hydra.main(config_path=os.path.normpath(CONFIGS), config_name="config", version_base="1.3")
def _run(composed: DictConfig) -> None:
    from neat_bench.config import build
    from neat_bench.experiment import run

    run(build(composed), list(HydraConfig.get().overrides.task))


def explain(error: Exception) -> str:
    """Return one line for an error of Hydra or OmegaConf: the key and the nearest valid one."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        valid = [f"{option}" for option in error.options if not option.startswith("_")]
        if not valid:
            return f"unknown choice '{error.missing_cfg_file}'"
        return f"unknown {group} '{choice}'{nearest(choice, valid)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': {error.message.splitlines()[0]}"
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        parent = cause.parent_node
        valid = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
        if str(cause.key) not in valid:
            return f"unknown key '{cause.full_key}'{nearest(str(cause.key), valid)}"
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    if isinstance(error, ConfigCompositionException) and "Could not override" in str(error):
        key = str(error).split("'")[1]
        groups = sorted(entry.name for entry in os.scandir(CONFIGS) if entry.is_dir())
        return f"unknown key '{key}'{nearest(key.split('@')[0].split('/')[0], groups)}"
    return " ".join(str(error).split())


def main() -> None:
    """Run what the command line says; exit with 1 and one line where the input cannot be used."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them
    try:
        _run()
    except InputError as error:
        _fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error))
    except KeyboardInterrupt:
        _fail("interrupted")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
