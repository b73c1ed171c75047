"""Duplicates: photos that are equal or look alike, in one part of the data or across both, and copies with different boxes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from data.dataset.annotations import Annotations
from data.dataset.groups import mixed_pairs
from data.dataset.images import read_image
from data.dataset.similar import find_alike, similarities
from ssd.boxes import iou
from ssd.inference.pictures import draw_boxes
from ssd.system.images import printable, write_picture

SAME = 0.98  # similarity from which boxes of two photos of one size should agree
UNEQUAL = 0.9999  # highest similarity of files that differ
AGREE = 0.5  # overlap from which two boxes of a class mark the same object
MAX_LISTED = 20  # pairs of each kind
MAX_DRAWN = 12
HEIGHT = 240  # pixels of a photo in the picture
MIN_WIDTH, MAX_WIDTH = 60, 640


class Pair(NamedTuple):
    """Two photos, by part (train, val) and index."""

    one: tuple[str, int]
    other: tuple[str, int]
    similarity: float  # 1 for equal files


class Duplicates(NamedTuple):
    """The duplicates in a run's data."""

    within: list[Pair]  # of each photo that repeats an earlier one of its part, with the most similar one
    across: list[Pair]  # of each validation photo whose group is in the training photos, too
    conflicts: list[tuple[Pair, str]]  # copies whose boxes differ, and how


def find_duplicates(train: Annotations, val: Annotations, group_by: str) -> Duplicates:
    """Find duplicates in the photos of a run. `group_by` is the entry `data.group_by`."""
    parts = {"train": train, "val": val}
    within = [pair for part, photos in parts.items() for pair in _within(part, photos)]
    across = []
    for one, other in mixed_pairs(train, val, "auto" if group_by == "none" else group_by):
        across.append(Pair(("train", one), ("val", other), _similarity(train, one, val, other)))
    conflicts = [(pair, text) for pair in (*within, *across) if (text := _conflict(pair, parts))]
    return Duplicates(within, across, conflicts)


def _within(part: str, photos: Annotations) -> list[Pair]:
    highest, best = np.zeros(len(photos), np.float32), np.arange(len(photos))
    for alike in find_alike(photos.thumbnails):
        is_better = alike.similarity > highest[alike.others]
        rows = alike.others[is_better]
        highest[rows], best[rows] = np.minimum(alike.similarity[is_better], UNEQUAL), alike.photo
    _, first, which = np.unique(photos.contents, return_index=True, return_inverse=True)
    is_repeat = first[which] != np.arange(len(photos))
    highest[is_repeat], best[is_repeat] = 1, first[which[is_repeat]]
    return [Pair((part, int(best[row])), (part, row), float(highest[row])) for row in np.flatnonzero(highest).tolist()]


def _similarity(first: Annotations, row: int, second: Annotations, column: int) -> float:
    """Return the similarity of two photos without mirroring; 1 for equal files only."""
    if first.contents[row] == second.contents[column]:
        return 1.0
    return min(float(similarities(first.thumbnails[[row]], second.thumbnails[[column]])[0]), UNEQUAL)


def _conflict(pair: Pair, parts: dict[str, Annotations]) -> str:
    """Describe how the boxes of two copies differ; empty if they agree, or if the photos are not copies."""
    (one, row), (other, column) = pair.one, pair.other
    first, second = parts[one], parts[other]
    # In a mirrored copy, the boxes are elsewhere.
    if _similarity(first, row, second, column) < SAME or (first.sizes[row] != second.sizes[column]).any():
        return ""
    missing = []
    overlaps = _overlaps(first, row, second, column)
    for photos, index, name, axis in ((first, row, "first", 1), (second, column, "second", 0)):
        rows = photos.objects(index)
        alone = photos.labels[rows][~(overlaps >= AGREE).any(axis=axis)]
        if len(alone):
            names = ", ".join(sorted({photos.classes[label] for label in alone}))
            missing.append(f"{len(alone)} object(s) only in the {name} ({names})")
    return "; ".join(missing)


def _overlaps(first: Annotations, row: int, second: Annotations, column: int) -> np.ndarray:
    """Return the overlaps of the objects of two photos `[n, m]`, 0 for different classes."""
    rows, columns = first.objects(row), second.objects(column)
    overlaps = iou(torch.from_numpy(first.boxes[rows]), torch.from_numpy(second.boxes[columns])).numpy()
    return np.where(first.labels[rows][:, None] == second.labels[columns], overlaps, 0)


def describe_duplicates(found: Duplicates, train: Annotations, val: Annotations) -> list[str]:
    """Return lines about duplicates, with the first pairs of each kind."""
    parts = {"train": train, "val": val}

    def pair_line(pair: Pair) -> str:
        (one, row), (other, column) = pair.one, pair.other
        sign = "equals" if pair.similarity == 1 else f"is like ({pair.similarity:.2f})"
        return f"  {printable(parts[other].path(column))} {sign} {printable(parts[one].path(row))}"

    lines = []
    for title, pairs in (
        (f"warning: {len(found.across)} of {len(val)} photos of data.val belong to photos of data.train: mAP will be too high",
         found.across),
        (f"{len(found.within)} photos repeat another photo of their part, which then counts more than others", found.within),
    ):  # fmt: skip
        if pairs:
            lines += [title, *map(pair_line, pairs[:MAX_LISTED]), *_more(pairs)]
    if found.conflicts:
        lines.append(
            f"warning: {len(found.conflicts)} photos have other boxes than an equal or nearly equal photo; check their labels"
        )
        lines += [f"{pair_line(pair)}: {text}" for pair, text in found.conflicts[:MAX_LISTED]]
        lines += _more(found.conflicts)
    return lines


def _more(items: Sequence[object]) -> list[str]:
    return [f"  ... and {len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []


def draw_duplicates(path: Path, found: Duplicates, train: Annotations, val: Annotations) -> None:
    """Draw the first pairs below each other, with their boxes: conflicts, then pairs across the parts, then those within."""
    parts = {"train": train, "val": val}
    pairs = list(dict.fromkeys([*(pair for pair, _ in found.conflicts), *found.across, *found.within]))[:MAX_DRAWN]
    rows = []
    for pair in pairs:
        photos = [_drawn(parts[part], index, part) for part, index in (pair.one, pair.other)]
        rows.append(np.concatenate(photos, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    write_picture(path, np.concatenate(padded))


def _drawn(photos: Annotations, index: int, part: str) -> np.ndarray:
    """Return a photo with its boxes, HEIGHT pixels high, with a title."""
    width, height = photos.sizes[index].tolist()
    image = read_image(photos.path(index), (width, height)).pixels
    rows = photos.objects(index)
    shown = min(max(round(image.shape[1] * HEIGHT / image.shape[0]), MIN_WIDTH), MAX_WIDTH)  # a strip is squeezed or stretched
    small = cv2.resize(image, (shown, HEIGHT), interpolation=cv2.INTER_AREA)
    scale = np.array([shown / image.shape[1], HEIGHT / image.shape[0]] * 2, np.float32)
    small = draw_boxes(small, photos.boxes[rows] * scale, photos.labels[rows], photos.classes)
    title = np.full((24, small.shape[1], 3), 255, np.uint8)
    text = printable(f"{part}: {os.path.basename(photos.path(index))}")
    cv2.putText(title, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.concatenate([title, small]), ((0, 0), (0, 4), (0, 0)), constant_values=255)
