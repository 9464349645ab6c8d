"""Which rows make a batch, in an order that seed and epoch decide, and the seed of what is random in a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset, Sampler

if TYPE_CHECKING:
    from datasets import Dataset as Rows

POOL_BATCHES = 50


class LengthBucketedBatches(Sampler[list[int]]):
    """Micro-batches of row indices for one epoch after another.

    Rows are shuffled, cut into pools of 50 optimizer steps, sorted by length within a pool, cut into
    optimizer steps of batch_size x accumulation rows, and the steps are shuffled again; a step is then
    cut into micro-batches, and a micro-batch into the shares of `processes`, of which this is number `process`. So
    neither accumulation nor processes change a step's rows or the order of steps, which (seed, epoch) alone decides.
    """

    def __init__(
        self, lengths: list[int], batch_size: int, accumulation: int, seed: int, process: int = 0, processes: int = 1
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size, self.step_size, self.seed = batch_size, batch_size * accumulation, seed
        self.process, self.processes = process, processes
        self.epoch, self.skipped = 0, 0

    def start_epoch(self, epoch: int, skipped: int = 0) -> None:
        """Choose the epoch whose order the next iteration gives, its first optimizer steps left out.

        Not named set_epoch: accelerate calls that with a count of its own, which knows of no resumed run.
        """
        self.epoch, self.skipped = epoch, skipped

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return -(-len(self.lengths) // self.step_size)

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.step_size)
        return full * (self.step_size // self.batch_size) + -(-rest // self.batch_size)

    def step_batches(self) -> Iterator[list[int]]:
        """Yield the rows of each optimizer step."""
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.lengths))
        pool_size = self.step_size * POOL_BATCHES
        steps = []
        for start in range(0, len(rows), pool_size):
            pool = rows[start : start + pool_size]
            pool = pool[np.argsort(-self.lengths[pool], kind="stable")]
            steps += [pool[at : at + self.step_size] for at in range(0, len(pool), self.step_size)]
        for index in generator.permutation(len(steps))[self.skipped :]:
            yield steps[index].tolist()

    def micro_batches(self, step: list[int]) -> Iterator[tuple[list[int], bool]]:
        """Yield this process's rows of each micro-batch of a step, and whether they count.

        A process without a share takes a row that does not count: all processes must take part in every step.
        """
        for at in range(0, len(step), self.batch_size):
            whole = step[at : at + self.batch_size]
            share = whole[self.process :: self.processes]
            yield share or whole[:1], bool(share)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.step_batches():
            for rows, _ in self.micro_batches(step):
                yield rows


class SeededRows(Dataset):
    """Encoded rows with `draw`, (seed, epoch): with a row's id, the seed of its augmentation.

    So what is drawn depends neither on the number of worker processes nor on what was drawn before.
    """

    def __init__(self, rows: Rows, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        draw = {"draw": (self.seed, self.epoch)}
        return [row | draw for row in self.rows.__getitems__(indices)]
