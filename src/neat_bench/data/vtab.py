"""VTAB's rules (arXiv 1910.04867): from the raw annotations of its structured tasks to classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neat_bench.errors import InputError

CLEVR_FEWEST = 3  # objects in a scene: 3 to 10
CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)  # metres
KITTI_VEHICLES = ("Car", "Van", "Truck")
NO_VEHICLE = 1000.0
SPRITE_CLASSES, SPRITE_POSITIONS, SPRITE_ORIENTATIONS = 16, 32, 40


def _last_passed(thresholds: Sequence[float], distance: float) -> int:
    """Return the index of the largest threshold below the distance, -1 if there is none."""
    return int(np.searchsorted(thresholds, distance, side="left")) - 1


def clevr_count(objects: int | Sequence[Any]) -> int:
    """Return the class of a number of objects (or of the list of them): 3 is class 0."""
    return (objects if isinstance(objects, int) else len(objects)) - CLEVR_FEWEST


def clevr_distance(depths: float | Sequence[float]) -> int:
    """Return the range, 0 to 5, of the closest object, from the objects' depths (pixel_coords' third number)."""
    return _last_passed(CLEVR_DISTANCES, float(np.min(depths)))


def kitti_distance(objects: Sequence[dict[str, Any]]) -> int:
    """Return the range, 0 to 2, of the closest car, van or truck, or 3 without one.

    objects: of each its `type` (KITTI's name, or its number with Car 0, Van 1, Truck 2) and its `z` in metres.
    """
    vehicles = (*KITTI_VEHICLES, *range(len(KITTI_VEHICLES)))
    closest = min((float(found["z"]) for found in objects if found["type"] in vehicles), default=NO_VEHICLE)
    return _last_passed(KITTI_DISTANCES, closest)


def sprite_bin(value: int, values: int) -> int:
    """Return which of 16 bins a dSprites factor falls in that takes so many values."""
    if not 0 <= value < values:
        raise ValueError(f"a dSprites factor from 0 to {values - 1}, not {value}")
    return value * SPRITE_CLASSES // values


LABEL_RULES: dict[str, Callable[[Any], int]] = {
    "clevr_count": clevr_count,
    "clevr_distance": clevr_distance,
    "kitti_distance": kitti_distance,
    "dsprites_location": lambda x: sprite_bin(x, SPRITE_POSITIONS),
    "dsprites_orientation": lambda orientation: sprite_bin(orientation, SPRITE_ORIENTATIONS),
}


def apply_rule(rule: str, value: Any, where: str) -> int:
    """Return the class of a raw annotation; raises InputError naming the row of one that the rule cannot read."""
    try:
        return LABEL_RULES[rule](value)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{where}: {value!r} is not what dataset.label_rule={rule} reads ({error})") from None
