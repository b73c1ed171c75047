"""The kinds of error of a detector, and what each costs in mAP (Bolya et al., TIDE: A General Toolbox for Identifying Object
Detection Errors, ECCV 2020, sections 2.2 and 2.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssd.evaluation.overlap import nearest
from ssd.evaluation.voc_eval import IOU_THRESH, Arrays, Flat, ap_of, claims, flatten, in_falling_score

BACKGROUND = 0.1  # what overlaps an object by less meets none

# A false positive is of the first kind that it fits; `missed` alone is of objects.
KINDS = ("localisation", "classification", "duplicate", "background", "both", "missed")
LOCALISATION, CLASSIFICATION, DUPLICATE, NO_OBJECT, BOTH, MISSED = range(len(KINDS))
HIT, IGNORED = -1, -2  # in the place of a kind: a true positive; one that claims a difficult object


@dataclass(frozen=True)
class Errors:
    """What becomes of n detections, in falling score, and m objects of a data set."""

    found: Flat
    objects: Flat
    kind: np.ndarray  # [n] int8: a number in KINDS, HIT or IGNORED
    object: np.ndarray  # [n] int64: that a hit claims, or that an error of place or class is about; else -1
    overlap: np.ndarray  # [n] the largest with an object of its class or, of an error that is about another one, with that
    map_impact: dict[str, float]  # of each kind: the mAP that would be gained without its errors

    def counts(self, score_thresh: float) -> dict[str, int]:
        """How many errors of each kind there are among the detections from a score on."""
        sure = self.found.values >= score_thresh
        numbers = np.bincount(self.kind[sure & (self.kind >= 0)], minlength=len(KINDS))
        numbers[MISSED] = _missed(self.objects, self.object[sure]).sum()
        return dict(zip(KINDS, numbers.tolist(), strict=True))


def error_kinds(
    detections: Sequence[Arrays], ground_truth: Sequence[Arrays], num_classes: int, use_07_metric: bool = True
) -> Errors:
    """Tells the errors of a detector apart.

    With the overlaps 0.5 and 0.1, a false positive is, in this order,

    - an error of localisation: it overlaps an object of its class by 0.1 to 0.5,
    - of classification: one of another class by 0.5 or more,
    - a duplicate: one of its class by 0.5 or more, which a detection of higher score claims,
    - background: no object by 0.1,
    - both: what is left, at 0.1 to 0.5 of an object of another class;

    an object is missed that is neither claimed nor what an error of localisation or classification is about.

    A kind costs what mAP gains by an oracle that mends its errors alone. Of localisation or classification it makes a true
    positive of the object's class: the one of highest score where there are several at one object (the authors' program
    chooses it among both kinds); it takes the others, and those at claimed objects, away. Missed objects it takes from those
    there are to find; a class without any left counts as found. All other errors it takes away.

    Difficult objects count as in VOC: what claims one does not count, and none is missed. An error about one is taken away.

    Args:
        detections: as of `voc_eval`.
        ground_truth: likewise.
        num_classes: without background.
        use_07_metric: as of `voc_eval`: 11-point AP or the area.
    """
    found, objects = in_falling_score(flatten(detections, "scores")), flatten(ground_truth, "difficult")
    own, overlap, hit, counts = claims(found, objects, IOU_THRESH)
    kind = np.where(hit, HIT, np.where(counts, BOTH, IGNORED)).astype(np.int8)
    of_object = np.where(hit, own, -1)
    false = np.flatnonzero(kind == BOTH)
    other, other_overlap = nearest(
        found.boxes[false], found.image[false], objects.boxes, objects.image, (found.labels[false], objects.labels)
    )
    own, own_overlap = own[false], overlap[false]
    is_localisation = (own_overlap >= BACKGROUND) & (own_overlap < IOU_THRESH)
    is_classification = ~is_localisation & (other_overlap >= IOU_THRESH)
    kind[false] = np.select(
        [is_localisation, is_classification, own_overlap >= IOU_THRESH, np.maximum(own_overlap, other_overlap) < BACKGROUND],
        [LOCALISATION, CLASSIFICATION, DUPLICATE, NO_OBJECT],
        BOTH,
    )
    of_object[false] = np.select([is_localisation, is_classification], [own, other], -1)
    overlap[false] = np.where(is_localisation, own_overlap, np.maximum(own_overlap, other_overlap))
    map_impact = _costs(found, objects, kind, of_object, num_classes, use_07_metric)
    return Errors(found, objects, kind, of_object, overlap, map_impact)


def _missed(objects: Flat, taken: np.ndarray) -> np.ndarray:
    """The objects that count and are not among those `taken`, where -1 is none: `[m]` bool."""
    missed = objects.values == 0
    missed[taken[taken >= 0]] = False
    return missed


def _costs(
    found: Flat, objects: Flat, kind: np.ndarray, of_object: np.ndarray, num_classes: int, use_07_metric: bool
) -> dict[str, float]:
    """What each kind costs in mAP; NaN where no class has an object."""
    num_objects = np.bincount(objects.labels[objects.values == 0], minlength=num_classes)

    def mean_ap(kept: np.ndarray, hit: np.ndarray, labels: np.ndarray, num_left: np.ndarray) -> float:
        aps = []
        for label in np.flatnonzero(num_objects).tolist():
            rows = np.flatnonzero(kept & (labels == label))
            ap = ap_of(hit[rows], found.values[rows], int(num_left[label]), use_07_metric)
            aps.append(ap if num_left[label] else 1.0)
        return float(np.mean(aps)) if aps else float("nan")

    counts, hit = kind != IGNORED, kind == HIT
    as_it_is = mean_ap(counts, hit, found.labels, num_objects)
    mended = []
    for number in range(MISSED):
        better = np.zeros(len(kind), bool)
        labels = found.labels
        if number in (LOCALISATION, CLASSIFICATION):
            rows = np.flatnonzero(kind == number)
            rows = rows[_missed(objects, of_object[hit])[of_object[rows]]]  # neither claimed nor difficult
            better[rows[np.unique(of_object[rows], return_index=True)[1]]] = True
            labels = np.where(better, objects.labels[of_object], found.labels) if better.any() else labels
        mended.append(mean_ap(counts & (kind != number) | better, hit | better, labels, num_objects))
    missed = np.bincount(objects.labels[_missed(objects, of_object)], minlength=num_classes)
    mended.append(mean_ap(counts, hit, found.labels, num_objects - missed))
    return {name: value - as_it_is for name, value in zip(KINDS, mended, strict=True)}
