"""Image classification: decoding, transforms, collation, loss and prediction."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neat_bench.data.images import NORMALIZATIONS, ImageClassification
from neat_bench.errors import InputError
from neat_bench.tasks.classification import ClassificationTask
from neat_bench.tasks.encoding import cached_map

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from PIL import Image


@contextmanager
def _drawn(seed: tuple[int, ...]) -> Iterator[None]:
    """Draw from the seed inside, and leave torch's generator as it was."""
    import torch

    state = torch.get_rng_state()
    # not torch.manual_seed, which would touch the GPU's generators as well
    torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield
    finally:
        torch.set_rng_state(state)


@dataclass(frozen=True, kw_only=True)
class ImageTask(ClassificationTask):
    """A classifier on an image encoder, with transformers' head for the architecture (or timm's).

    Where nothing is random, an image is decoded and resized once and cached as bytes; with crop_flip the
    training images are decoded and cut anew each time, as (order seed, epoch, id) say.
    """

    spec: ImageClassification

    auto_class = "AutoModelForImageClassification"
    reads_text = False

    def decode(self, encoded: bytes, where: str) -> Image.Image:
        """Return the image in RGB; raises InputError naming the row of one that does not decode."""
        from PIL import Image

        try:
            return Image.open(io.BytesIO(encoded)).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{where}: the image does not decode ({error})") from None

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the image as the evaluation sees it, image_size x image_size."""
        from torchvision.transforms import v2

        size = self.spec.image_size
        if self.spec.resize == "squash":
            return v2.functional.resize(image, [size, size])
        return v2.functional.center_crop(v2.functional.resize(image, size), [size, size])

    def encode(self, rows: Dataset, cache: Path, training: bool) -> Dataset:
        """Return rows with `labels`, `length` (1) and either `pixels` (resized, uint8 bytes) or `image`."""

        def label(row: dict[str, Any]) -> dict[str, Any]:
            return {"labels": row["label"], "length": 1}

        def fixed(row: dict[str, Any]) -> dict[str, Any]:
            return label(row) | {"pixels": np.asarray(self.resize(self.decode(row["image"], row["where"]))).tobytes()}

        def random(row: dict[str, Any]) -> dict[str, Any]:
            return label(row) | {"image": row["image"], "where": row["where"]}

        augmented = training and self.spec.augmentation == "crop_flip"
        content = b"".join(rows["image"][:]) + repr((rows["label"][:], self.spec.image_size, self.spec.resize)).encode()
        return cached_map(rows, random if augmented else fixed, content + repr(augmented).encode(), cache)

    def collator(self, training: bool) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return a function from rows to `pixel_values` (batch x 3 x size x size), `labels` and `id`."""
        import torch
        from torchvision.transforms import v2

        size = self.spec.image_size
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS[self.spec.normalization])
        augment = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])

        def pixels(row: dict[str, Any]) -> np.ndarray:
            if "pixels" in row:
                return np.frombuffer(row["pixels"], np.uint8).reshape(size, size, 3)
            image = self.decode(row["image"], row["where"])
            with _drawn((*row.get("draw", (0, 0)), row["id"])):
                return np.asarray(augment(image))

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            stacked = torch.from_numpy(np.stack([pixels(row) for row in rows]))
            values = (stacked.permute(0, 3, 1, 2).float() / 255 - mean) / std
            return {
                "pixel_values": values,
                "labels": torch.tensor([row["labels"] for row in rows]),
                "id": torch.tensor([row["id"] for row in rows]),
            }

        return collate

    def logits(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the outputs of the head, batch x classes."""
        output = model(batch["pixel_values"])
        return getattr(output, "logits", output)
