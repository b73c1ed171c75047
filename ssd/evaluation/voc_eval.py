"""Average precision as the PASCAL VOC devkit computes it (VOCevaldet.m), over all images and classes at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ssd.evaluation.overlap import nearest

Arrays = Mapping[str, Any]  # tensors or arrays by name
AveragePrecision = Callable[[np.ndarray, np.ndarray], float]  # recall, rising, and precision → AP of one class
IOU_THRESH = 0.5  # minimum overlap of a true positive; VOCevaldet.m compares `ovmax>=VOCopts.minoverlap`


@dataclass(frozen=True)
class APResult:
    """Average precision and the curves behind it; lists have one entry for each class."""

    ap: list[float]  # NaN for classes without objects (difficult ones aside)
    mean_ap: float  # over the classes with objects; NaN if there are none
    num_objects: list[int]  # without the difficult ones
    num_detections: list[int]
    recall: list[np.ndarray]  # after each detection, by falling score
    precision: list[np.ndarray]
    scores: list[np.ndarray]  # of that detection
    counts: list[np.ndarray]  # detections with at least that score, without those of difficult objects

    def at(self, label: int, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return recall, precision and the number of detections of one class at each score threshold.

        Without any detection, recall is 0 and precision 1.
        """
        last = np.searchsorted(-self.scores[label], -thresholds, side="right") - 1  # the last detection above a threshold
        ends = ((self.recall, 0.0), (self.precision, 1.0), (self.counts, 0))
        recall, precision, counts = (np.append(values[label], end)[last] for values, end in ends)  # -1 is the end
        return recall, precision, counts


class Flat(NamedTuple):
    """The detections or the objects of all images, concatenated."""

    boxes: np.ndarray  # [n, 4] inclusive pixels
    labels: np.ndarray  # [n]
    values: np.ndarray  # [n] scores, or 1 for difficult objects
    image: np.ndarray  # [n] number of the image


class Claims(NamedTuple):
    """How detections, by falling score, match objects."""

    nearest: np.ndarray  # [n] the object of the same class with the largest overlap, -1: none
    overlap: np.ndarray  # [n] with that object
    hit: np.ndarray  # [n] bool: a true positive
    counts: np.ndarray  # [n] bool: False if it claims a difficult object


def voc_eval(
    detections: Sequence[Arrays],
    ground_truth: Sequence[Arrays],
    num_classes: int,
    iou_thresh: float = IOU_THRESH,
    use_07_metric: bool = True,
) -> APResult:
    """Compute VOC average precision.

    A detection claims the object of its class, in its image, with the largest overlap, if that is at least `iou_thresh`. The
    first claim of an object, by falling score, is a true positive; any later one is a false positive. Claims of difficult
    objects do not count. Detections with equal scores are evaluated together, since no threshold separates them: their order
    does not matter.

    Args:
        detections: one entry for each image: `boxes` `[n, 4]`, `labels` `[n]` from 0, `scores` `[n]`.
        ground_truth: one entry for each image: `boxes` `[m, 4]`, `labels` `[m]`, `difficult` `[m]` bool.
        num_classes: without background.
        iou_thresh: in 0..1.
        use_07_metric: 11-point AP of VOC2007; otherwise the area under the curve of VOC2010 and later. Their values differ.

    Boxes are corners in pixels, inclusive as in VOC: a box from 1 to 3 is 3 wide.

    Raises:
        ValueError: the two lists differ in length.
    """
    if len(detections) != len(ground_truth):
        raise ValueError(f"detections of {len(detections)} images, ground truth of {len(ground_truth)}")
    found, objects = by_falling_score(flatten(detections, "scores")), flatten(ground_truth, "difficult")
    labels, scores = found.labels, found.values
    _, _, hit, counts = claims(found, objects, iou_thresh)

    average_precision = eleven_point_ap if use_07_metric else area_ap
    ap, curves, num_objects = [], [], []
    for label in range(num_classes):
        rows = (labels == label) & counts
        num_objects.append(int(((objects.labels == label) & (objects.values == 0)).sum()))
        curves.append(_curve(hit[rows], scores[rows], num_objects[-1]))
        recall, precision, *_ = curves[-1]
        ap.append(average_precision(recall, precision) if num_objects[-1] else float("nan"))
    recalls, precisions, thresholds, counts = ([curve[i] for curve in curves] for i in range(4))
    return APResult(
        ap=ap,
        mean_ap=mean_of_present(ap),
        num_objects=num_objects,
        num_detections=np.bincount(labels, minlength=num_classes).tolist(),
        recall=recalls,
        precision=precisions,
        scores=thresholds,
        counts=counts,
    )


def eleven_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return the 11-point AP of VOC2007: the mean best precision at the recalls 0, 0.1, ... 1."""
    # The devkit compares with 0:0.1:1, which has the values i / 10.
    return float(_envelope(precision)[np.searchsorted(recall, np.arange(11) / 10)].mean())


def area_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return the AP of VOC2010: the area under the falling envelope of the curve."""
    return float((np.diff(recall, prepend=0.0) * _envelope(precision)[:-1]).sum())


def _envelope(precision: np.ndarray) -> np.ndarray:
    """Return the best precision at each recall or above; 0 beyond the last."""
    return np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)


def mean_of_present(ap: Sequence[float]) -> float:
    """Return the mean AP over the classes with objects; NaN if there are none."""
    present = [value for value in ap if not np.isnan(value)]
    return float(np.mean(present)) if present else float("nan")


def flatten(entries: Sequence[Arrays], extra: str) -> Flat:
    """Concatenate all entries; `extra` names the array that becomes `values`."""
    if not entries:
        return Flat(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
    boxes = np.concatenate([np.asarray(entry["boxes"], np.float64).reshape(-1, 4) for entry in entries])
    labels = np.concatenate([np.asarray(entry["labels"], np.int64).reshape(-1) for entry in entries])
    values = np.concatenate([np.asarray(entry[extra], np.float64).reshape(-1) for entry in entries])
    return Flat(boxes, labels, values, np.repeat(np.arange(len(entries)), [len(entry["labels"]) for entry in entries]))


def by_falling_score(detections: Flat) -> Flat:
    """Sort detections by falling score; equal scores keep their order."""
    order = np.argsort(-detections.values, kind="stable")
    return Flat(*(part[order] for part in detections))


def claims(detections: Flat, objects: Flat, iou_thresh: float) -> Claims:
    """Return the object that each detection claims, and whether it is a true positive, by the rule of `voc_eval`.

    Args:
        detections: by falling score.
        objects: the ground truth; `values` marks difficult ones.
        iou_thresh: minimum overlap of a claim.
    """
    num_classes = 1 + max(detections.labels.max(initial=0), objects.labels.max(initial=0))
    best, overlap = nearest(
        detections.boxes, detections.image * num_classes + detections.labels,
        objects.boxes, objects.image * num_classes + objects.labels,
    )  # fmt: skip
    claimed = np.where(overlap >= iou_thresh, best, -1)
    counts = np.append(objects.values == 0, True)[claimed]
    first_claim = np.zeros(len(claimed), bool)
    first_claim[np.unique(claimed, return_index=True)[1]] = True
    return Claims(best, overlap, first_claim & (claimed >= 0) & counts, counts)


def class_ap(hit: np.ndarray, scores: np.ndarray, num_objects: int, average_precision: AveragePrecision) -> float:
    """Return the AP of one class; NaN without objects.

    Args:
        hit: `[n]` whether each detection, by falling score, is a true positive.
        scores: `[n]` of the detections.
        num_objects: number of objects to find.
        average_precision: AP of a curve.
    """
    recall, precision, *_ = _curve(hit, scores, num_objects)
    return average_precision(recall, precision) if num_objects else float("nan")


def _curve(hit: np.ndarray, scores: np.ndarray, num_objects: int) -> tuple[np.ndarray, ...]:
    """Return recall, precision, score and number of detections after each run of equal scores."""
    true = np.cumsum(hit)
    last_of_equals = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    total = np.arange(1, len(hit) + 1)
    recall, precision = true / max(num_objects, 1), true / total
    return tuple(values[last_of_equals] for values in (recall, precision, scores, total))
