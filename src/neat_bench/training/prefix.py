"""The frozen blocks below the first trained one, whose outputs need computing only once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.models.roles import architecture_of, backbone_of

if TYPE_CHECKING:
    from datasets import Dataset

GIGA = 10**9


class FrozenPrefix:
    """A model's leading blocks that nothing trains in or before, and that nobody listens to.

    `blocks` is empty where the first block (or the embeddings) trains.
    """

    def __init__(self, model: nn.Module) -> None:
        _, backbone = backbone_of(model)
        blocks = list(backbone.get_submodule(architecture_of(model).blocks).children())
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        around = [parameter for parameter in backbone.parameters() if id(parameter) not in inside]
        # what trains around the blocks may come before them; a head is outside the backbone
        head = {id(p) for p in model.get_classifier().parameters()} if backbone is model else set()  # type: ignore[operator]
        count = 0
        if not any(parameter.requires_grad and id(parameter) not in head for parameter in around):
            while count < len(blocks) and not _is_adapted(blocks[count]):
                count += 1
        self.blocks = blocks[:count]
        later = {id(module) for block in blocks[count:] for module in block.modules()}
        self._quiet = [module for module in backbone.modules() if id(module) not in later]

    def set_inference(self) -> None:
        """Turn dropout off below and around the blocks that train, so that the kept outputs are the outputs."""
        for module in self._quiet if self.blocks else []:
            module.training = False

    @contextmanager
    def _skipped(self, hidden: Tensor) -> Iterator[None]:
        """Let the blocks do nothing but give `hidden` (batch x tokens x d) as the last one's output."""
        for block in self.blocks:
            block.forward = lambda *_, **__: hidden
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward


def _is_adapted(block: nn.Module) -> bool:
    """Return whether something in the block trains, or its output is edited or read by a hook."""
    hooked = any(module._forward_hooks for module in block.modules())
    return hooked or any(parameter.requires_grad for parameter in block.parameters())


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
            with self.prefix._skipped(self._read(rows, mask, batch["id"].device)):
                yield
            return
        hook = self.prefix.blocks[-1].register_forward_hook(lambda _, __, output: self._write(rows, mask, output))
        try:
            yield
        finally:
            hook.remove()

    def _places(self, rows: Tensor) -> Tensor:
        """Return where the rows' tokens lie in the file, row after row."""
        lengths = self.lengths[rows]
        first = torch.repeat_interleave(self.starts[rows] - (lengths.cumsum(0) - lengths), lengths)
        return first + torch.arange(int(lengths.sum()))

    def _read(self, rows: Tensor, mask: Tensor | None, device: torch.device) -> Tensor:
        assert self.store is not None
        found = self.store[self._places(rows)].to(device)
        if mask is None:
            return found.view(len(rows), -1, found.shape[-1])
        hidden = found.new_zeros(*mask.shape, found.shape[-1])
        hidden[mask.bool()] = found
        return hidden

    @torch.no_grad()
    def _write(self, rows: Tensor, mask: Tensor | None, hidden: Tensor) -> None:
        if self.store is None:
            if mask is None:  # images: all have the same number of tokens
                self.lengths = torch.full_like(self.lengths, hidden.shape[1])
            self.starts = self.lengths.cumsum(0) - self.lengths
            self.store = self._reserve(int(self.lengths.sum()), hidden)
        kept = hidden.flatten(0, 1) if mask is None else hidden[mask.bool()]
        self.store[self._places(rows)] = kept.to("cpu", self.store.dtype)
        self.filled[rows] = True

    def _reserve(self, tokens: int, like: Tensor) -> Tensor:
        """Return a tensor, tokens x d, in a file that nobody sees."""
        size = tokens * like.shape[-1] * like.element_size()
        if size > self.limit:
            raise InputError(
                f"trainer.cache_frozen_prefix needs {size / GIGA:.1f} GB for {tokens:,} tokens: raise "
                f"trainer.prefix_cache_gb (now {self.limit / GIGA:g}) or turn it off"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, prefix="prefix-")
        try:
            os.posix_fallocate(handle, 0, size)  # now, not as a crash in the middle of an epoch
            flat = torch.from_file(name, shared=True, size=tokens * like.shape[-1], dtype=like.dtype)
        except OSError as error:
            raise InputError(f"no room in {self.folder} for {size / GIGA:.1f} GB of kept outputs: {error}") from None
        finally:
            os.close(handle)
            os.unlink(name)  # the mapping lives on
        return flat.view(tokens, like.shape[-1])
