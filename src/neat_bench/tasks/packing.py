"""Several examples in one row, so that no batch is mostly padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def pack(rows: Dataset, max_length: int) -> Dataset:
    """Return rows of up to max_length tokens: `input_ids`, `labels`, `position_ids`, `items`, `length`, `id`.

    Best fit, longest first. Positions start again with each example, which is where attention stops; an
    example's first token predicts nothing and is predicted by nothing, as in a row of its own.
    """
    from datasets import Dataset

    ids, labels, lengths = rows["input_ids"][:], rows["labels"][:], rows["length"][:]
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # free tokens -> bins
    for row in sorted(range(len(rows)), key=lambda at: -lengths[at]):
        room = next((free for free in range(lengths[row], max_length) if with_room.get(free)), None)
        if room is None:
            bins.append([])
            room, target = max_length, len(bins) - 1
        else:
            target = with_room[room].pop()
        bins[target].append(row)
        with_room.setdefault(room - lengths[row], []).append(target)
    packed: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "position_ids", "items", "length")}
    for members in bins:
        packed["input_ids"].append([token for at in members for token in ids[at]])
        packed["labels"].append([label for at in members for label in (-100, *labels[at][1:])])
        packed["position_ids"].append([position for at in members for position in range(lengths[at])])
        packed["items"].append(len(members))
        packed["length"].append(sum(lengths[at] for at in members))
    return Dataset.from_dict(packed | {"id": list(range(len(bins)))})
