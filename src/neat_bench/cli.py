"""The command line: Hydra composes, `experiment.run` runs, and whatever goes wrong is said in one line."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from neat_bench.errors import InputError, StoppedBySignal, nearest
from neat_bench.secrets import redacted_text

LONGEST = 200  # characters of an unforeseen error's text

# where Hydra would write, and what it would call, before anything of ours is asked
FIXED = ("hydra.run.", "hydra.sweep.", "hydra.output_subdir", "hydra.job.chdir", "hydra.callbacks")
CONFIGS = str(Path(__file__).resolve().parents[2] / "configs")


@hydra.main(config_path=CONFIGS, config_name="config", version_base="1.3")
def _run(composed: DictConfig) -> None:
    from neat_bench.config import build
    from neat_bench.experiment import run

    # here, because Hydra would add a line of its own to an exception
    with _one_line(composed.get("debug") is True):
        run(build(composed), list(HydraConfig.get().overrides.task))


@contextmanager
def _one_line(debug: bool) -> Iterator[None]:
    """Turn whatever is raised inside into one line and an exit code; with debug, show its traceback first."""
    try:
        yield
    except StoppedBySignal as stopped:
        _fail(str(stopped), 128 + stopped.number)
    except InputError as error:
        if debug:
            traceback.print_exc()
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if _raised_in_composition(error):
            _fail(explain(error))
        reason = " ".join(str(error).split())[:LONGEST]
        _fail(f"{type(error).__name__}: {reason} (debug=true shows where)")


def explain(error: Exception) -> str:
    """Return one line for an error of Hydra or OmegaConf: the key and the nearest valid one."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.partition("/")
        folder = Path(CONFIGS) / group
        names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("[!_]*.yaml"))
        return f"unknown {group} '{choice}'{nearest(choice, names)}"
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
        groups = (path.name for path in Path(CONFIGS).iterdir() if path.is_dir())
        return f"unknown key '{key}'{nearest(key.split('@')[0].split('/')[0], groups)}"
    return " ".join(str(error).split())


def main() -> None:
    """Run what the command line says; exit with 1 and one line where it cannot be done."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them
    with _one_line("debug=true" in sys.argv):
        for argument in sys.argv[1:]:
            if argument.lstrip("+~").startswith(FIXED):
                raise InputError(f"{argument.split('=')[0]} is fixed: paths.* say where a run writes")
        _run()


def _raised_in_composition(error: Exception) -> bool:
    """Say whether Hydra or OmegaConf raised the error, which may be of any type, rather than our own code."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals["__name__"].split(".")[0] in ("hydra", "omegaconf")


def _fail(message: str, code: int = 1) -> NoReturn:
    print(f"error: {redacted_text(message)}", file=sys.stderr)
    sys.exit(code)
