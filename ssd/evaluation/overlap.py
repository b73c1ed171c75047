"""Overlap of pixel boxes, and the object that each detection overlaps most, for all photos at once."""

from collections.abc import Iterator

import numpy as np

PAIRS = 1 << 17  # detection and object pairs compared at once; they fit into the processor's cache


def pixel_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the overlap of inclusive pixel boxes: `[..., 4], [..., 4] → [...]`, with broadcasting."""
    ax1, ay1, ax2, ay2 = np.moveaxis(a, -1, 0)
    bx1, by1, bx2, by2 = np.moveaxis(b, -1, 0)
    width = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1) + 1, 0)
    height = np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1) + 1, 0)
    intersection = width * height
    areas = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1)
    return intersection / (areas - intersection)


def pairs_within(group: np.ndarray, true_group: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all pairs of a detection and an object of the same group, in chunks that keep a detection's pairs together.

    Args:
        group: `[n]` of each detection.
        true_group: `[m]` of each object.

    Yields:
        Detections that have pairs `[r]`, the start of each one's pairs `[r]`, and the object of each pair.
    """
    by_group = np.argsort(true_group, kind="stable")
    in_order = true_group[by_group]
    order = np.argsort(group, kind="stable")  # detections compared with the same objects are adjacent in memory
    first = np.searchsorted(in_order, group[order], "left")
    num_pairs = np.searchsorted(in_order, group[order], "right") - first
    some = np.flatnonzero(num_pairs)
    order, first, num_pairs = order[some], first[some], num_pairs[some]
    ends = np.cumsum(num_pairs)
    cuts = np.searchsorted(ends, np.arange(PAIRS, ends[-1] if len(ends) else 0, PAIRS))
    for part in np.split(np.arange(len(order)), np.unique(cuts)):
        if len(part):
            counts = num_pairs[part]
            begin = np.cumsum(counts) - counts
            yield order[part], begin, by_group[np.arange(counts.sum()) - np.repeat(begin - first[part], counts)]


def nearest(
    boxes: np.ndarray,
    group: np.ndarray,
    true_boxes: np.ndarray,
    true_group: np.ndarray,
    other_than: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the object of its group that each detection overlaps most.

    Args:
        boxes: of the detections `[n, 4]`, inclusive pixels.
        group: of each `[n]`, such as its photo.
        true_boxes: of the objects `[m, 4]`.
        true_group: of each `[m]`.
        other_than: labels of detections `[n]` and of objects `[m]`; pairs with equal labels are ignored.

    Returns:
        The object `[n]`, the first of equal overlaps as in the devkit's loop, and the overlap `[n]`; -1 and 0 for none.
    """
    best, best_overlap = np.full(len(boxes), -1), np.zeros(len(boxes))
    planes, true_planes = np.ascontiguousarray(boxes.T), np.ascontiguousarray(true_boxes.T)
    for rows, begin, candidate in pairs_within(group, true_group):
        counts = np.diff(np.append(begin, len(candidate)))
        overlap = pixel_iou(np.repeat(planes[:, rows], counts, axis=1).T, true_planes[:, candidate].T)
        overlap = np.nan_to_num(overlap, copy=False)  # boxes with NaN overlap nothing
        if other_than is not None:
            overlap[np.repeat(other_than[0][rows], counts) == other_than[1][candidate]] = 0
        best_overlap[rows] = np.maximum.reduceat(overlap, begin)
        at_best = np.flatnonzero(overlap == np.repeat(best_overlap[rows], counts))
        best[rows] = candidate[at_best[np.searchsorted(at_best, begin)]]
    best[best_overlap == 0] = -1
    return best, best_overlap
