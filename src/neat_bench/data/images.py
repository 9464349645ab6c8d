"""Image classification data: encoded images in a column, with a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from neat_bench.data.spec import LabelledSpec
from neat_bench.data.vtab import LABEL_RULES, apply_rule
from neat_bench.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

# per-channel mean and standard deviation of pixels in [0, 1]
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "lite": ((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)),  # EfficientNet-Lite's
}
AUGMENTATIONS = ("none", "crop_flip")
RESIZES = ("crop", "squash")


@dataclass(kw_only=True)
class ImageClassification(LabelledSpec):
    """Images (encoded bytes, or the hub's image struct of bytes and path) with a class.

    num_classes: how many classes there are, where `classes` does not name them. label_rule: VTAB's rule that
    makes a class of the raw annotation in the label column. image_size: pixels of the square the model sees.
    resize: crop (shorter side, then the centre) or squash (both sides, as VTAB-1k does).
    augmentation: in training, none or crop_flip (random resized crop and horizontal flip). normalization:
    imagenet, half or lite, the statistics the model was pretrained with; it changes the number and is in the
    record.
    """

    image: str = "image"
    num_classes: int | None = None
    label_rule: str | None = None
    image_size: int = 224
    resize: str = "crop"
    augmentation: str = "none"
    normalization: str = "imagenet"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, valid in (
            ("normalization", NORMALIZATIONS),
            ("augmentation", AUGMENTATIONS),
            ("resize", RESIZES),
            ("label_rule", (None, *LABEL_RULES)),
        ):
            if getattr(self, name) not in valid:
                raise InputError(
                    f"unknown dataset.{name} '{getattr(self, name)}'{nearest(getattr(self, name), filter(None, valid))}"
                )
        if (self.classes is None) == (self.num_classes is None):
            raise InputError("an image data set has either dataset.classes (names) or dataset.num_classes")
        if self.num_classes is not None and self.num_classes < 2:
            raise InputError(f"dataset.num_classes is at least 2, not {self.num_classes}")
        if self.image_size < 8:
            raise InputError(f"dataset.image_size is at least 8 pixels, not {self.image_size}")

    def class_names(self) -> list[str] | None:
        """Return the names, or the numbers where the classes have none."""
        return self.classes if self.num_classes is None else [str(index) for index in range(self.num_classes)]

    def _checked_label(self, value: object, split: str, row: int) -> int | float:
        """Return the class, by the label rule where there is one."""
        if self.label_rule is not None:
            value = apply_rule(self.label_rule, value, f"{self.name}, split {split}, row {row}")
        return super()._checked_label(value, split, row)

    def input_columns(self) -> list[str]:
        """Return the image column."""
        return [self.image]

    def inputs(self, rows: Dataset, split: str) -> dict[str, list]:
        """Return `image` (encoded bytes) and `where` (for messages); raises InputError for rows without bytes."""
        from datasets import Image

        if isinstance(rows.features[self.image], Image):
            rows = rows.cast_column(self.image, Image(decode=False))
        images, where = [], []
        for row, value in enumerate(rows[self.image]):
            encoded = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(encoded, bytes):
                raise InputError(f"{self.name}, split {split}, row {row}: {self.image} holds no image bytes")
            images.append(encoded)
            where.append(f"{self.name}, split {split}, row {row}")
        return {"image": images, "where": where}
