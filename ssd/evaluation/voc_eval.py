"""Average precision as the PASCAL VOC devkit computes it (VOCevaldet.m), over all images and classes at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ssd.evaluation.overlap import nearest

Arrays = Mapping[str, Any]  # of tensors or arrays
VOC07, VOC10 = "VOC07 11-point", "VOC10 area"  # the metrics, as they are named wherever a figure is printed
IOU_THRESH = 0.5  # the least overlap at which an object is found; VOCevaldet.m compares `ovmax>=VOCopts.minoverlap`


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
    metric: str  # VOC07 or VOC10

    def at(self, label: int, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recall, precision and the number of detections of one class, from each of the score thresholds on.

        Without any detection recall is 0 and precision 1.
        """
        last = np.searchsorted(-self.scores[label], -thresholds, side="right") - 1  # of the detections from a threshold on
        ends = ((self.recall, 0.0), (self.precision, 1.0), (self.counts, 0))
        recall, precision, counts = (np.append(values[label], end)[last] for values, end in ends)  # -1 is the end
        return recall, precision, counts


class Flat(NamedTuple):
    """The detections or the objects of all images together."""

    boxes: np.ndarray  # [n, 4] inclusive pixels
    labels: np.ndarray  # [n]
    values: np.ndarray  # [n] scores, or 1 for difficult objects
    image: np.ndarray  # [n] number of the image


class Claims(NamedTuple):
    """How detections, in falling score, meet objects."""

    nearest: np.ndarray  # [n] the object of its class that each overlaps most, -1: none
    overlap: np.ndarray  # [n] with that
    hit: np.ndarray  # [n] bool: a true positive
    counts: np.ndarray  # [n] bool: not what claims a difficult object


def metric_name(use_07_metric: bool) -> str:
    """How a figure is named wherever it is printed."""
    return VOC07 if use_07_metric else VOC10


def voc_eval(
    detections: Sequence[Arrays],
    ground_truth: Sequence[Arrays],
    num_classes: int,
    iou_thresh: float = IOU_THRESH,
    use_07_metric: bool = True,
) -> VOCResult:
    """VOC average precision.

    A detection claims the object of its class, in its image, that it overlaps most, if by `iou_thresh` or more. The
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
    found, objects = in_falling_score(flatten(detections, "scores")), flatten(ground_truth, "difficult")
    labels, scores = found.labels, found.values
    _, _, hit, counts = claims(found, objects, iou_thresh)

    ap, curves, num_objects = [], [], []
    for label in range(num_classes):
        rows = (labels == label) & counts
        num_objects.append(int(((objects.labels == label) & (objects.values == 0)).sum()))
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


def flatten(entries: Sequence[Arrays], extra: str) -> Flat:
    """All entries together; `extra` names their values."""
    if not entries:
        return Flat(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
    boxes = np.concatenate([np.asarray(entry["boxes"], np.float64).reshape(-1, 4) for entry in entries])
    labels = np.concatenate([np.asarray(entry["labels"], np.int64).reshape(-1) for entry in entries])
    values = np.concatenate([np.asarray(entry[extra], np.float64).reshape(-1) for entry in entries])
    return Flat(boxes, labels, values, np.repeat(np.arange(len(entries)), [len(entry["labels"]) for entry in entries]))


def in_falling_score(detections: Flat) -> Flat:
    """The same detections, those of equal score in the order in which they stand."""
    order = np.argsort(-detections.values, kind="stable")
    return Flat(*(part[order] for part in detections))


def claims(detections: Flat, objects: Flat, iou_thresh: float) -> Claims:
    """Which object each detection claims, and what comes of it: `voc_eval` tells the rule.

    Args:
        detections: in falling score.
        objects: the ground truth; its values tell which are difficult.
        iou_thresh: least overlap of a claim.
    """
    num_classes = 1 + max(detections.labels.max(initial=0), objects.labels.max(initial=0))
    own, overlap = nearest(
        detections.boxes, detections.image * num_classes + detections.labels,
        objects.boxes, objects.image * num_classes + objects.labels,
    )  # fmt: skip
    claimed = np.where(overlap >= iou_thresh, own, -1)
    counts = np.append(objects.values == 0, True)[claimed]
    first_claim = np.zeros(len(claimed), bool)
    first_claim[np.unique(claimed, return_index=True)[1]] = True
    return Claims(own, overlap, first_claim & (claimed >= 0) & counts, counts)


def ap_of(hit: np.ndarray, scores: np.ndarray, num_objects: int, use_07_metric: bool) -> float:
    """AP of one class; NaN without objects.

    Args:
        hit: `[n]` whether each detection, in falling score, is a true positive.
        scores: `[n]` of the detections.
        num_objects: that there are to find.
        use_07_metric: as in `voc_eval`.
    """
    recall, precision, *_ = _curve(hit, scores, num_objects)
    return average_precision(recall, precision, use_07_metric) if num_objects else float("nan")


def _curve(hit: np.ndarray, scores: np.ndarray, num_objects: int) -> tuple[np.ndarray, ...]:
    """Recall, precision, score and number of detections after each run of equal scores."""
    true = np.cumsum(hit)
    last_of_equals = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    total = np.arange(1, len(hit) + 1)
    recall, precision = true / max(num_objects, 1), true / total
    return tuple(values[last_of_equals] for values in (recall, precision, scores, total))
