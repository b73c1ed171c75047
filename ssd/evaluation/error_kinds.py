"""The kinds of a detector's errors and their impact on mAP (Bolya et al., TIDE: A General Toolbox for Identifying Object
Detection Errors, ECCV 2020, sections 2.2 and 2.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssd.evaluation.overlap import nearest
from ssd.evaluation.voc_eval import (
    IOU_THRESH,
    Arrays,
    AveragePrecision,
    Flat,
    by_falling_score,
    claims,
    class_ap,
    eleven_point_ap,
    flatten,
)

BACKGROUND = 0.1  # overlap with an object below which a detection is on background

# A false positive has the first kind that fits; `missed` is the only kind for objects.
KINDS = ("localisation", "classification", "duplicate", "background", "both", "missed")
LOCALISATION, CLASSIFICATION, DUPLICATE, NO_OBJECT, BOTH, MISSED = range(len(KINDS))
HIT, IGNORED = -1, -2  # instead of a kind: a true positive; a detection that claims a difficult object


@dataclass(frozen=True)
class Errors:
    """The errors among n detections, by falling score, and m objects of all photos."""

    found: Flat
    objects: Flat
    kind: np.ndarray  # [n] int8: a number in KINDS, HIT or IGNORED
    object: np.ndarray  # [n] int64: claimed by a hit, or that a localisation or classification error refers to; else -1
    overlap: np.ndarray  # [n] with that object, or the largest with any
    map_impact: dict[str, float]  # by kind: gain of mAP without its errors
    average_precision: AveragePrecision  # that `map_impact` was computed with

    def counts(self, score_thresh: float) -> dict[str, int]:
        """Return the number of errors of each kind among the detections with at least that score."""
        sure = self.found.values >= score_thresh
        numbers = np.bincount(self.kind[sure & (self.kind >= 0)], minlength=len(KINDS))
        numbers[MISSED] = _missed(self.objects, self.object[sure]).sum()
        return dict(zip(KINDS, numbers.tolist(), strict=True))


def error_kinds(
    detections: Sequence[Arrays],
    ground_truth: Sequence[Arrays],
    num_classes: int,
    average_precision: AveragePrecision = eleven_point_ap,
) -> Errors:
    """Classify the errors of a detector.

    The kind of a false positive is the first of these that fits:

    - localisation: it overlaps an object of its class by 0.1 to 0.5,
    - classification: it overlaps an object of another class by 0.5 or more,
    - duplicate: it overlaps an object of its class by 0.5 or more, but a detection with a higher score claims the object,
    - background: it overlaps no object by 0.1,
    - both: it overlaps an object of another class by 0.1 to 0.5.

    An object is missed if no detection claims it and no localisation or classification error refers to it.

    The impact of a kind is the gain of mAP if an oracle corrects its errors alone. A localisation or classification error
    becomes a true positive of the object's class. If several refer to one object, the one with the highest score does (the
    authors' program chooses it among both kinds); the others, and errors at claimed objects, are removed. Missed objects are
    removed from the objects to find; a class without remaining objects counts as found. All other errors are removed.

    Difficult objects count as in VOC: detections that claim one do not count, none is missed, and errors that refer to one are
    removed.

    Args:
        detections: as in `voc_eval`.
        ground_truth: as in `voc_eval`.
        num_classes: without background.
        average_precision: AP of a curve.
    """
    found, objects = by_falling_score(flatten(detections, "scores")), flatten(ground_truth, "difficult")
    same_class, overlap, hit, counts = claims(found, objects, IOU_THRESH)
    kind = np.where(hit, HIT, np.where(counts, BOTH, IGNORED)).astype(np.int8)
    of_object = np.where(hit, same_class, -1)
    false = np.flatnonzero(kind == BOTH)
    other, other_overlap = nearest(
        found.boxes[false], found.image[false], objects.boxes, objects.image, (found.labels[false], objects.labels)
    )
    same_class, same_overlap = same_class[false], overlap[false]
    is_localisation = (same_overlap >= BACKGROUND) & (same_overlap < IOU_THRESH)
    is_classification = ~is_localisation & (other_overlap >= IOU_THRESH)
    kind[false] = np.select(
        [is_localisation, is_classification, same_overlap >= IOU_THRESH, np.maximum(same_overlap, other_overlap) < BACKGROUND],
        [LOCALISATION, CLASSIFICATION, DUPLICATE, NO_OBJECT],
        BOTH,
    )
    of_object[false] = np.select([is_localisation, is_classification], [same_class, other], -1)
    overlap[false] = np.where(is_localisation, same_overlap, np.maximum(same_overlap, other_overlap))
    map_impact = _map_impact(found, objects, kind, of_object, num_classes, average_precision)
    return Errors(found, objects, kind, of_object, overlap, map_impact, average_precision)


def _missed(objects: Flat, taken: np.ndarray) -> np.ndarray:
    """Return which objects count and are not in `taken` (-1: none) `[m]` bool."""
    missed = objects.values == 0
    missed[taken[taken >= 0]] = False
    return missed


def _map_impact(
    found: Flat, objects: Flat, kind: np.ndarray, of_object: np.ndarray, num_classes: int, average_precision: AveragePrecision
) -> dict[str, float]:
    """Return the impact of each kind on mAP; NaN if no class has objects."""
    num_objects = np.bincount(objects.labels[objects.values == 0], minlength=num_classes)

    def mean_ap(kept: np.ndarray, hit: np.ndarray, labels: np.ndarray, num_to_find: np.ndarray) -> float:
        aps = []
        for label in np.flatnonzero(num_objects).tolist():
            rows = np.flatnonzero(kept & (labels == label))
            ap = class_ap(hit[rows], found.values[rows], int(num_to_find[label]), average_precision)
            aps.append(ap if num_to_find[label] else 1.0)
        return float(np.mean(aps)) if aps else float("nan")

    counts, hit = kind != IGNORED, kind == HIT
    actual = mean_ap(counts, hit, found.labels, num_objects)
    corrected = []
    for number in range(MISSED):
        better = np.zeros(len(kind), bool)
        labels = found.labels
        if number in (LOCALISATION, CLASSIFICATION):
            rows = np.flatnonzero(kind == number)
            rows = rows[_missed(objects, of_object[hit])[of_object[rows]]]  # neither claimed nor difficult
            better[rows[np.unique(of_object[rows], return_index=True)[1]]] = True
            labels = np.where(better, objects.labels[of_object], found.labels) if better.any() else labels
        corrected.append(mean_ap(counts & (kind != number) | better, hit | better, labels, num_objects))
    missed = np.bincount(objects.labels[_missed(objects, of_object)], minlength=num_classes)
    corrected.append(mean_ap(counts, hit, found.labels, num_objects - missed))
    return {name: value - actual for name, value in zip(KINDS, corrected, strict=True)}
