"""The frozen blocks below the first trained one, whose outputs need computing only once."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.hidden import SideNetwork
from neat_bench.models.roles import architecture_of, backbone_of, head_names

if TYPE_CHECKING:
    from datasets import Dataset

GIGA = 10**9


class FrozenPrefix:
    """A model's leading blocks that nothing trains in or before.

    A network beside the model may listen to the blocks' outputs. Read it once the method is attached and prepared.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The blocks, in order; none where the first block (or the embeddings) trains."""
        blocks = self._all_blocks
        side = {id(parameter) for network in self._side for parameter in network.parameters()}
        apart = side | {id(parameter) for block in blocks for parameter in block.parameters()}
        apart |= {id(self._model.get_parameter(name)) for name in head_names(self._model)}
        _, backbone = backbone_of(self._model)
        # what trains around the blocks may come before them
        if any(parameter.requires_grad and id(parameter) not in apart for parameter in backbone.parameters()):
            return []
        return list(takewhile(_is_frozen, blocks))

    @cached_property
    def heard(self) -> list[nn.Module]:
        """Those of the blocks whose outputs must be kept: the last one, and each that a hook listens to."""
        return [block for block in self.blocks if block is self.blocks[-1] or block._forward_hooks]

    @property
    def _all_blocks(self) -> list[nn.Module]:
        _, backbone = backbone_of(self._model)
        return list(backbone.get_submodule(architecture_of(self._model).blocks).children())

    @property
    def _side(self) -> list[nn.Module]:
        return [module for module in self._model.modules() if isinstance(module, SideNetwork)]

    def set_inference(self) -> None:
        """Turn dropout off below and around the blocks that train, so that the kept outputs are the outputs."""
        if not self.blocks:
            return
        _, backbone = backbone_of(self._model)
        training = [*self._all_blocks[len(self.blocks) :], *self._side]
        noisy = {id(module) for each in training for module in each.modules()}
        for module in backbone.modules():
            if id(module) not in noisy:
                module.training = False

    @contextmanager
    def skipped(self, outputs: list[Tensor]) -> Iterator[None]:
        """Let the blocks do nothing but give the outputs (batch x tokens x d) of the heard ones, in order."""
        found = iter(outputs)
        hidden = outputs[0]
        for block in self.blocks:
            if block in self.heard:
                hidden = next(found)
            block.forward = lambda *_, kept=hidden, **__: kept
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward


def _is_frozen(block: nn.Module) -> bool:
    """Return whether nothing in the block trains and no hook looks inside it."""
    hooked = any(module._forward_hooks for module in block.modules() if module is not block)
    return not hooked and not any(parameter.requires_grad for parameter in block.parameters())


class PrefixCache:
    """The prefix's outputs for each row of a data set, in a file that is gone when the run ends.

    Padding is not kept: a row takes its own number of tokens. limit_gb bounds the file. Raises InputError for
    rows whose outputs are not the same in every epoch.
    """

    def __init__(self, prefix: FrozenPrefix, rows: Dataset, folder: Path, limit_gb: float) -> None:
        if {"image", "position_ids"} & set(rows.column_names):
            raise InputError(
                "trainer.cache_frozen_prefix needs rows that are the same in every epoch and have a sequence each: "
                "set dataset.augmentation=none, or dataset.packing=false, or turn it off"
            )
        self.prefix, self.folder, self.limit = prefix, folder, limit_gb * GIGA
        self.row_of = {item: row for row, item in enumerate(rows["id"])}
        self.lengths = torch.tensor(rows["length"])
        self.filled = torch.zeros(len(rows), dtype=torch.bool)
        self.starts = torch.zeros(0)
        self.store: Tensor | None = None

    @contextmanager
    def reusing(self, batch: dict[str, Any]) -> Iterator[None]:
        """Run the model inside on a batch with `id`: the prefix's outputs come from the cache, or go into it."""
        if not self.prefix.blocks:
            yield
            return
        rows = torch.tensor([self.row_of[item] for item in batch["id"].tolist()])
        mask = batch.get("attention_mask")
        if bool(self.filled[rows].all()):
            with self.prefix.skipped(self._read(rows, mask, batch["id"].device)):
                yield
            return
        outputs: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
            for block in self.prefix.heard
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._write(rows, mask, torch.stack(outputs, dim=2))

    def _places(self, rows: Tensor) -> Tensor:
        """Return where the rows' tokens lie in the file, row after row."""
        lengths = self.lengths[rows]
        first = torch.repeat_interleave(self.starts[rows] - (lengths.cumsum(0) - lengths), lengths)
        return first + torch.arange(int(lengths.sum()))

    def _read(self, rows: Tensor, mask: Tensor | None, device: torch.device) -> list[Tensor]:
        """Return the kept outputs of the rows, batch x tokens x d for each block that is heard."""
        assert self.store is not None
        found = self.store[self._places(rows)].to(device)
        if mask is None:
            return list(found.unflatten(0, (len(rows), -1)).unbind(2))
        hidden = found.new_zeros(*mask.shape, *found.shape[1:])
        hidden[mask.bool()] = found
        return list(hidden.unbind(2))

    @torch.no_grad()
    def _write(self, rows: Tensor, mask: Tensor | None, hidden: Tensor) -> None:
        """Keep outputs, batch x tokens x blocks x d."""
        if self.store is None:
            if mask is None:  # images: all have the same number of tokens
                self.lengths = torch.full_like(self.lengths, hidden.shape[1])
            self.starts = self.lengths.cumsum(0) - self.lengths
            self.store = self._reserve(int(self.lengths.sum()), hidden)
        kept = hidden.flatten(0, 1) if mask is None else hidden[mask.bool()]
        self.store[self._places(rows)] = kept.to("cpu", self.store.dtype)
        self.filled[rows] = True

    def _reserve(self, tokens: int, like: Tensor) -> Tensor:
        """Return a tensor, tokens x blocks x d, in a file that nobody sees."""
        shape = tokens, *like.shape[2:]
        size = math.prod(shape) * like.element_size()
        if size > self.limit:
            raise InputError(
                f"trainer.cache_frozen_prefix needs {size / GIGA:.1f} GB for {tokens:,} tokens: raise "
                f"trainer.prefix_cache_gb (now {self.limit / GIGA:g}) or turn it off"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, prefix="prefix-")
        try:
            os.posix_fallocate(handle, 0, size)  # now, not as a crash in the middle of an epoch
            flat = torch.from_file(name, shared=True, size=math.prod(shape), dtype=like.dtype)
        except OSError as error:
            raise InputError(f"no room in {self.folder} for {size / GIGA:.1f} GB of kept outputs: {error}") from None
        finally:
            os.close(handle)
            os.unlink(name)  # the mapping lives on
        return flat.view(shape)
