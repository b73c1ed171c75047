"""Average precision as the PASCAL VOC devkit computes it (VOCevaldet.m), over all images and classes at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]  # of tensors or arrays


@dataclass(frozen=True)
class VOCResult:
    """What `voc_eval` finds; lists have an entry a class."""

    ap: list[float]  # NaN where the ground truth has no object (difficult ones aside)
    mean_ap: float  # over the classes that have objects; NaN if none has
    num_objects: list[int]  # that count: without the difficult ones
    num_detections: list[int]
    recall: list[np.ndarray]  # after each detection, in falling score
    precision: list[np.ndarray]
    scores: list[np.ndarray]  # the detection's score, at which recall and precision stand
    counts: list[np.ndarray]  # detections from that score on; those of difficult objects aside
    metric: str  # "VOC07 11-point" or "VOC10 area"

    def at(self, label: int, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recall, precision and the number of detections of one class, from each of the score thresholds on.

        Without any detection recall is 0 and precision 1.
        """
        last = np.searchsorted(-self.scores[label], -thresholds, side="right") - 1  # of the detections from a threshold on
        ends = ((self.recall, 0.0), (self.precision, 1.0), (self.counts, 0))
        recall, precision, counts = (np.append(values[label], end)[last] for values, end in ends)  # -1 is the end
        return recall, precision, counts


def metric_name(use_07_metric: bool) -> str:
    """How a figure is named wherever it is printed."""
    return "VOC07 11-point" if use_07_metric else "VOC10 area"


def voc_eval(
    detections: Sequence[Arrays],
    ground_truth: Sequence[Arrays],
    num_classes: int,
    iou_thresh: float = 0.5,
    use_07_metric: bool = True,
) -> VOCResult:
    """VOC average precision.

    A detection claims the object of its class, in its image, that it overlaps most, if by more than `iou_thresh`. The
    first claim of an object, in falling score, is a true positive, any later one a false positive; claims of difficult
    objects do not count at all. Detections of equal score are taken together, since no threshold can part them: their
    order makes no difference.

    Args:
        detections: an entry an image: `boxes` `[n, 4]`, `labels` `[n]` from 0, `scores` `[n]`.
        ground_truth: an entry an image: `boxes` `[m, 4]`, `labels` `[m]`, `difficult` `[m]` bool.
        num_classes: without background.
        iou_thresh: in 0..1.
        use_07_metric: the 11-point figure of VOC2007, or the area under the curve of VOC2010 and later. The two are
            different numbers.

    Boxes are corners in pixels, inclusive as VOC has them: a box from 1 to 3 is 3 wide.

    Raises:
        ValueError: the two lists differ in length.
    """
    if len(detections) != len(ground_truth):
        raise ValueError(f"detections of {len(detections)} images, ground truth of {len(ground_truth)}")
    boxes, labels, scores, image = _concatenate(detections, "scores")
    true_boxes, true_labels, difficult, true_image = _concatenate(ground_truth, "difficult")
    difficult = difficult.astype(bool)
    order = np.argsort(-scores, kind="stable")
    boxes, labels, scores, image = boxes[order], labels[order], scores[order], image[order]

    claimed = _claims(boxes, image * num_classes + labels, true_boxes, true_image * num_classes + true_labels, iou_thresh)
    real = np.ones(len(scores), bool)  # what does not meet a difficult object
    real[claimed >= 0] = ~difficult[claimed[claimed >= 0]]
    hit = np.zeros(len(scores), bool)
    first_claim = np.unique(claimed, return_index=True)[1]
    hit[first_claim] = claimed[first_claim] >= 0

    ap, curves, num_objects = [], [], []
    for label in range(num_classes):
        rows = (labels == label) & real
        num_objects.append(int(((true_labels == label) & ~difficult).sum()))
        curves.append(_curve(hit[rows], scores[rows], num_objects[-1]))
        recall, precision, *_ = curves[-1]
        ap.append(average_precision(recall, precision, use_07_metric) if num_objects[-1] else float("nan"))
    present = [value for value in ap if not np.isnan(value)]
    recalls, precisions, thresholds, counts = ([curve[i] for curve in curves] for i in range(4))
    return VOCResult(
        ap=ap,
        mean_ap=float(np.mean(present)) if present else float("nan"),
        num_objects=num_objects,
        num_detections=np.bincount(labels, minlength=num_classes).tolist(),
        recall=recalls,
        precision=precisions,
        scores=thresholds,
        counts=counts,
        metric=metric_name(use_07_metric),
    )


def average_precision(recall: np.ndarray, precision: np.ndarray, use_07_metric: bool) -> float:
    """AP of one class from its curve, recall rising: 11-point (VOC2007) or area under the falling envelope (VOC2010)."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # the best precision at this recall or above
    if use_07_metric:
        # The devkit compares with 0:0.1:1, whose values are those of i / 10.
        return float(envelope[np.searchsorted(recall, np.arange(11) / 10)].mean())
    return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())


def _concatenate(entries: Sequence[Arrays], extra: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes `[n, 4]`, labels `[n]`, the `extra` values `[n]` and the image's number `[n]` of all entries together."""
    if not entries:
        return np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)
    boxes = np.concatenate([np.asarray(entry["boxes"], np.float64).reshape(-1, 4) for entry in entries])
    labels = np.concatenate([np.asarray(entry["labels"], np.int64).reshape(-1) for entry in entries])
    values = np.concatenate([np.asarray(entry[extra], np.float64).reshape(-1) for entry in entries])
    return boxes, labels, values, np.repeat(np.arange(len(entries)), [len(entry["labels"]) for entry in entries])


def _claims(
    boxes: np.ndarray, group: np.ndarray, true_boxes: np.ndarray, true_group: np.ndarray, iou_thresh: float
) -> np.ndarray:
    """The object that each detection claims `[n]`, -1 where none; only objects of the same group come into question."""
    by_group = np.argsort(true_group, kind="stable")
    first = np.searchsorted(true_group[by_group], group, "left")
    num_pairs = np.searchsorted(true_group[by_group], group, "right") - first
    claimed = np.full(len(boxes), -1)
    rows = np.flatnonzero(num_pairs)
    if not len(rows):
        return claimed
    num_pairs, first = num_pairs[rows], first[rows]
    begin = np.cumsum(num_pairs) - num_pairs  # where each detection's pairs begin
    pair = np.arange(num_pairs.sum())
    candidate = by_group[pair - np.repeat(begin - first, num_pairs)]
    overlap = pixel_iou(boxes[np.repeat(rows, num_pairs)], true_boxes[candidate])
    best = np.maximum.reduceat(overlap, begin)
    # The first of equal overlaps, as the devkit's loop finds it.
    at_best = np.where(overlap == np.repeat(best, num_pairs), pair, len(pair))
    best_pair = np.minimum.reduceat(at_best, begin)
    claimed[rows] = np.where(best > iou_thresh, candidate[np.minimum(best_pair, len(pair) - 1)], -1)
    return claimed


def pixel_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of inclusive pixel boxes, row by row: `[..., 4], [..., 4] → [...]`, shapes that broadcast."""
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    intersection = np.where((size > 0).all(axis=-1), size.prod(axis=-1), 0.0)
    areas = (a[..., 2:] - a[..., :2] + 1).prod(axis=-1) + (b[..., 2:] - b[..., :2] + 1).prod(axis=-1)
    return intersection / (areas - intersection)


def _curve(hit: np.ndarray, scores: np.ndarray, num_objects: int) -> tuple[np.ndarray, ...]:
    """Recall, precision, score and number of detections after each run of equal scores."""
    true = np.cumsum(hit)
    last_of_equals = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    total = np.arange(1, len(hit) + 1)
    recall, precision = true / max(num_objects, 1), true / total
    return tuple(values[last_of_equals] for values in (recall, precision, scores, total))
