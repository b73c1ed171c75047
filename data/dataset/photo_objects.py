"""The objects of one photo, as arrays. Every format's reader returns them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MIN_SIDE = 0.5  # pixels; smaller boxes are dropped, since nobody draws them on purpose
MAX_SIDE = 2**31  # pixels; a larger photo size is ignored as nonsense


class PhotoSize(NamedTuple):
    """Size of a photo in pixels: as stored, and after its EXIF orientation is applied."""

    width: int
    height: int
    upright_width: int
    upright_height: int


class PhotoObjects(NamedTuple):
    """The m objects of one photo, and where in its annotation file boxes were fixed or dropped."""

    width: int  # pixels; 0 if unknown
    height: int
    boxes: np.ndarray  # [m, 4] float32 pixels: edges (x1, y1, x2, y2) counted from 0, so that x2 - x1 is the width
    labels: np.ndarray  # [m] int64
    difficult: np.ndarray  # [m] bool
    truncated: np.ndarray  # [m] int8, as in VOC: 1 if the object extends beyond its box, 0 if not, -1 if unknown
    clipped: tuple[str, ...]  # boxes that reached beyond the photo
    empty: tuple[str, ...]  # boxes without area (dropped)
    tiny: tuple[str, ...]  # boxes far smaller than a pixel (dropped)
    repeated: tuple[str, ...]  # boxes that repeat another one of their class (dropped)
    written: np.ndarray  # [k, 4] float32 pixels: edges of all boxes as read, including dropped ones


def agreed_size(given: tuple[int, int], photo: PhotoSize | None, where: str, entry: str, faults: list[str]) -> tuple[int, int]:
    """Return the photo size to use: the one the annotation gives, or else the photo's own, upright.

    Args:
        given: width and height in the annotation; 0 if missing.
        photo: the photo's own size, if known.
        where: the place in the annotation file, for messages.
        entry: the name of the size entry in that file, for messages.
        faults: receives a message if the annotation's size is neither the stored nor the upright size.
    """
    if photo and not given[0]:
        return photo[2:]
    if photo and given not in (photo[:2], photo[2:]):
        size = f"{photo.width} × {photo.height}"
        if photo[2:] != photo[:2]:
            size += f" ({photo.upright_width} × {photo.upright_height} after its EXIF orientation)"
        remedy = f"use the photo that the boxes were drawn on, or fix {entry} if the boxes fit this one"
        faults.append(f"{where}: says {given[0]} × {given[1]} pixels, but the photo has {size}; {remedy}")
    return given


def clip_objects(
    width: int,
    height: int,
    boxes: Sequence[tuple[float, float, float, float]] | np.ndarray,
    labels: Sequence[int],
    difficult: Sequence[bool],
    where: Callable[[int], str],
    truncated: Sequence[int] | None = None,
) -> PhotoObjects:
    """Return a photo's objects, with boxes clipped to the photo.

    Boxes without area, boxes far smaller than a pixel, and repeated boxes of one class (from merged annotations) are dropped.

    Args:
        width: of the photo, pixels; 0 if unknown.
        height: of the photo, pixels; 0 if unknown.
        boxes: edges `[m, 4]`, pixels counted from 0.
        labels: `[m]`.
        difficult: `[m]`.
        where: returns an object's place in its file, by index.
        truncated: `[m]` as in `PhotoObjects`; None if the format has no such flag.
    """
    edges = np.clip(np.array(boxes, np.float64), -MAX_SIDE, MAX_SIDE).astype(np.float32).reshape(-1, 4)
    kinds = np.array(labels, np.int64)
    clipped, is_clipped = _clip(edges, width, height)
    shorter = (clipped[:, 2:] - clipped[:, :2]).min(axis=1, initial=np.inf)
    whole = shorter >= MIN_SIDE
    kept = whole & _is_first(edges, kinds)
    reported = (is_clipped & kept, shorter <= 0, (shorter > 0) & ~whole, whole & ~kept)
    clipped_at, empty_at, tiny_at, repeated_at = (tuple(map(where, np.flatnonzero(rows).tolist())) for rows in reported)
    return PhotoObjects(
        width, height, clipped[kept], kinds[kept], np.array(difficult, bool)[kept],
        np.full(len(kept), -1, np.int8)[kept] if truncated is None else np.array(truncated, np.int8)[kept],
        clipped_at, empty_at, tiny_at, repeated_at, edges,
    )  # fmt: skip


def is_rotated(angle: object) -> bool:
    """Return whether an angle (degrees, number or text) rotates a box by more than rounding."""
    try:
        rest = float(str(angle)) % 180
    except ValueError:
        return False
    return not min(rest, 180 - rest) < 0.5


def rotated_box_fault(angle: object) -> str:
    """Return the message for a rotated box."""
    return f"has a rotated box (angle {angle}), but SSD needs upright ones; export boxes without an angle"


def _clip(boxes: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to the photo, if its size is known. Also return which boxes lost more than a pixel."""
    if not width:
        return np.maximum(boxes, 0), np.zeros(len(boxes), bool)
    clipped = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    return clipped, np.abs(clipped - boxes).max(axis=1, initial=0) > 1


def _is_first(boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which objects `[m]` are the first with their box and class."""
    rows = [(*box, label) for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)]
    first: dict[tuple[float, ...], int] = {}  # for a few rows ten times as fast as np.unique
    return np.array([first.setdefault(row, i) == i for i, row in enumerate(rows)], bool)
