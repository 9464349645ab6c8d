"""Hydra's two ends of a sweep: no empty ones, and each job in its own process.

Hydra accepts launcher and sweeper classes only from the hydra_plugins namespace package; the work is done
in neat_bench.sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ProcessLauncher(Launcher):
    """Runs each job of a sweep in its own process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes the jobs."""
        self.config, self.loader = config, hydra_context.config_loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; raises InputError before the first if one cannot be composed, or after all if one failed."""
        from neat_bench.sweep import plan, run_sweep

        sources = self.config.hydra.runtime.config_sources
        config_dirs = [f"file://{source.path}" for source in sources if source.provider == "command-line"]
        composed = [self.loader.load_sweep_config(self.config, list(overrides)) for overrides in job_overrides]
        run_sweep(plan(job_overrides, composed), config_dirs)
        return [JobReturn(overrides=jobs, status=JobStatus.COMPLETED) for jobs in job_overrides]


class NonEmptySweeper(BasicSweeper):
    """Hydra's grid over the command line, which takes a sweep without a single job for an error."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the grid without leaving a file of Hydra's own behind."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.split_arguments(parser.parse_overrides([*self._parse_config(), *arguments]), None)
        return [self.launcher.launch(batch, initial_job_idx=0) for batch in batches]

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Return the jobs' overrides; raises InputError where a list of choices is empty."""
        from neat_bench.errors import InputError

        batches = BasicSweeper.split_arguments(overrides, max_batch_size)
        if not any(batches):
            empty = [o.input_line for o in overrides if o.is_sweep_override() and not list(o.sweep_string_iterator())]
            raise InputError(
                f"the sweep has no jobs: {', '.join(map(str, empty))} matches nothing; give a list instead, "
                "such as dataset=glue/sst2,glue/rte"
            )
        return batches
