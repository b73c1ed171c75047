"""Fit DBoxes to the training photos: find the sizes and ratios of a network's rows that cover the most objects."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ssd.architecture import SSD300_VGG16, Architecture
from ssd.dbox import DBoxRow, DBoxSpec, cell_sizes, named_specs, spec_of

COVERED = 0.5  # smallest IoU at which a DBox covers an object
SOFTNESS = 0.05  # width in IoU of the sigmoid that replaces this threshold during the search
MOST_OBJECTS = 10_000  # of more, some are drawn
STEPS = (1.3, 1.12, 1.05, 1.02)  # factors to try on a size or a ratio, from coarse to fine
LEAST_SIZE, MOST_SIZE, MOST_RATIO = 4 / 300, 400 / 300, 8.0  # sizes as shares of the input's side
SIZE_DIGITS, RATIO_DIGITS = 1, 2  # after the decimal point
KMEANS_ROUNDS = 30


class Sizes(NamedTuple):
    """The content of `model.dboxes` in a configuration."""

    sizes: tuple[float, ...]  # one more than feature maps
    ratios: tuple[tuple[float, ...], ...]  # of each feature map

    def to_plain(self) -> dict[str, list[object]]:
        return {"sizes": list(self.sizes), "ratios": [list(row) for row in self.ratios]}


class Objects(NamedTuple):
    """Objects to fit the DBoxes of a network to, and their weights."""

    boxes: np.ndarray  # [N, 4] corners in pixels of the network's input
    weights: np.ndarray  # [N], sum 1: each class counts the same, as in mAP
    architecture: Architecture = SSD300_VGG16


def objects_of(boxes: np.ndarray, labels: np.ndarray, seed: int = 0, architecture: Architecture = SSD300_VGG16) -> Objects:
    """Return the objects to fit, at most `MOST_OBJECTS`.

    Args:
        boxes: `[N, 4]` corners, relative to the photo.
        labels: `[N]`.
        seed: for drawing from more objects.
        architecture: of the network.
    """
    if len(labels) > MOST_OBJECTS:
        chosen = np.random.default_rng(seed).permutation(len(labels))[:MOST_OBJECTS]
        boxes, labels = boxes[chosen], labels[chosen]
    counts = np.bincount(labels)
    corners = boxes.astype(np.float64) * architecture.input_size
    return Objects(corners, 1 / counts[labels] / np.count_nonzero(counts), architecture)


def fit(objects: Objects) -> Sizes:
    """Return the sizes and ratios that cover the most objects: the best of searches from voc, coco and k-means on overlap.

    Each search raises and lowers one number at a time, in ever finer steps, and keeps each improvement. The number of DBoxes
    per cell, and so their total, stays that of the architecture.
    """
    named = [_sizes_of(spec) for spec in named_specs(objects.architecture).values()]
    starts = [*named, kmeans_start(objects)]
    return max([*named, *(_search(start, objects) for start in starts)], key=lambda sizes: coverage(sizes, objects))


def coverage(sizes: Sizes, objects: Objects) -> float:
    """Return the share of objects that a DBox overlaps by 0.5 or more, averaged over the classes."""
    overlap = _map_overlaps(sizes, objects).max(axis=0)
    return float(objects.weights @ (overlap >= COVERED))


def _map_overlaps(sizes: Sizes, objects: Objects) -> np.ndarray:
    """Return each object's largest overlap with a DBox of each feature map `[maps, N]`."""
    spec = spec_of(sizes, objects.architecture)
    return np.stack([map_overlap(row, objects.boxes, spec.input_size) for row in spec.maps])


def map_overlap(row: DBoxRow, boxes: np.ndarray, input_size: int) -> np.ndarray:
    """Return each object's largest overlap `[N]` with a DBox of one feature map.

    Among boxes of one size, the one with the nearest centre overlaps most, so each object needs only one cell.

    Args:
        row: the feature map's DBoxes.
        boxes: `[N, 4]` corners in pixels.
        input_size: side of the network's input in pixels.
    """
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    places = np.minimum((np.arange(row.cells) + 0.5) * row.step, input_size)
    nearest = places[np.searchsorted((places[1:] + places[:-1]) / 2, center)]
    apart = np.abs(center - nearest)[:, None]  # [N, 1, 2]
    dbox = np.minimum(np.array(cell_sizes(row)), input_size)  # [DBoxes a cell, 2]
    common = np.clip((dbox + size[:, None]) / 2 - apart, 0, np.minimum(dbox, size[:, None]))
    intersection = common.prod(axis=2)
    return (intersection / (dbox.prod(axis=1) + size.prod(axis=1)[:, None] - intersection)).max(axis=1)


def kmeans_start(objects: Objects) -> Sizes:
    """Cluster the objects by k-means on overlap (YOLOv2, section 2), one cluster per feature map. Keep the network's ratios."""
    size = objects.boxes[:, 2:] - objects.boxes[:, :2]
    order = np.argsort(size.prod(axis=1))
    parts = np.array_split(order, len(objects.architecture.maps))
    centers = np.array([np.median(size[part] if len(part) else size, axis=0) for part in parts])
    for _ in range(KMEANS_ROUNDS):
        intersection = np.minimum(size[:, None], centers).prod(axis=2)
        overlap = intersection / (size.prod(axis=1)[:, None] + centers.prod(axis=1) - intersection)
        nearest = overlap.argmax(axis=1)
        total = np.maximum(np.bincount(nearest, objects.weights, len(centers)), 1e-12)
        sums = [np.bincount(nearest, objects.weights * side, len(centers)) for side in size.T]
        is_used = np.bincount(nearest, minlength=len(centers)) > 0
        centers = np.where(is_used[:, None], np.stack(sums, axis=1) / total[:, None], centers)
    sides = np.sort(np.sqrt(centers.prod(axis=1)))
    least, most = _bounds(objects.architecture)
    sizes = np.clip(np.append(sides, sides[-1] * 1.2), least, most)
    rising = sizes.round(SIZE_DIGITS) + 0.1 * np.arange(len(sizes))
    ratios = tuple(tuple(map(float, row.aspect_ratios)) for row in objects.architecture.maps)
    return Sizes(tuple(rising.round(SIZE_DIGITS).tolist()), ratios)


def _bounds(architecture: Architecture) -> tuple[float, float]:
    """Return the least and the largest size of a DBox, in pixels."""
    return LEAST_SIZE * architecture.input_size, MOST_SIZE * architecture.input_size


def _sizes_of(spec: DBoxSpec) -> Sizes:
    sizes = (*(row.min_size for row in spec.maps), spec.maps[-1].max_size)
    return Sizes(sizes, tuple(tuple(map(float, row.aspect_ratios)) for row in spec.maps))


def _search(start: Sizes, objects: Objects) -> Sizes:
    """Return the best sizes and ratios that a search from `start` finds."""
    places = [(0, i, 0) for i in range(len(start.sizes))]
    places += [(1, i, j) for i, row in enumerate(start.ratios) for j in range(len(row))]
    best = start
    architecture = objects.architecture
    overlaps = _map_overlaps(best, objects)  # [maps, N]
    score = _goodness(overlaps, objects)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for place in places:
                for factor in (step, 1 / step):
                    tried = _changed(best, place, factor, _bounds(architecture))
                    if tried is None:
                        continue
                    old, new = spec_of(best, architecture).maps, spec_of(tried, architecture).maps
                    others = overlaps.copy()
                    for i in range(len(new)):
                        if new[i] != old[i]:
                            others[i] = map_overlap(new[i], objects.boxes, architecture.input_size)
                    value = _goodness(others, objects)
                    if value > score + 1e-6:
                        best, overlaps, score, improved = tried, others, value, True
    return best


def _goodness(overlaps: np.ndarray, objects: Objects) -> float:
    """Return a smooth version of the coverage, so that the search notices small improvements."""
    return float(objects.weights @ (1 / (1 + np.exp((COVERED - overlaps.max(axis=0)) / SOFTNESS))))


def _changed(sizes: Sizes, place: tuple[int, int, int], factor: float, bounds: tuple[float, float]) -> Sizes | None:
    """Multiply one size or ratio by a factor. Return None if the result is not valid for SSD."""
    kind, i, j = place
    if kind == 0:
        values = list(sizes.sizes)
        values[i] = round(values[i] * factor, SIZE_DIGITS)
        is_rising = all(low < high for low, high in pairwise(values))
        fits = is_rising and values[0] >= bounds[0] and values[-1] <= bounds[1]
        return sizes._replace(sizes=tuple(values)) if fits else None
    row = list(sizes.ratios[i])
    row[j] = round(row[j] * factor, RATIO_DIGITS)
    if not 1 < row[j] <= MOST_RATIO:
        return None
    return sizes._replace(ratios=(*sizes.ratios[:i], tuple(row), *sizes.ratios[i + 1 :]))
