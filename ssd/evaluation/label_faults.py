"""Labels that contradict a detector, ranked by how likely they are to be wrong.

A label is suspect if a detector that is usually right contradicts it; Tkachenko, Thyagarajan and Mueller (ObjectLab, 2023) look
for the same faults. How often the detector is right is measured on the same photos.
"""

from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import nms

from ssd.evaluation.error_kinds import BOTH, CLASSIFICATION, DUPLICATE, HIT, IGNORED, LOCALISATION, NO_OBJECT, Errors
from ssd.evaluation.voc_eval import IOU_THRESH

# An object without a label; or a label with the wrong class, a misplaced box, or no object in its box.
FAULTS = ("missing", "wrong class", "wrong box", "nothing there")
MISSING, WRONG_CLASS, WRONG_BOX, NOTHING_THERE = range(len(FAULTS))

BINS = 20  # of scores 0 to 1; precision is measured in each
PULL = 5  # prior: this many detections with the precision of all classes are added to each bin of a class
ALIKE = 40  # objects of the same class and nearest in size to compare an object with
LEAST = 0.2  # minimum suspicion for a detection to contradict a label


class Faults(NamedTuple):
    """Possible faults in the labels, the likeliest first: one for each object that is not difficult, and one for each
    place where a label may be missing."""

    kind: np.ndarray  # [f] a number in FAULTS
    suspicion: np.ndarray  # [f] 0..1, comparable only within a kind
    image: np.ndarray  # [f]
    object: np.ndarray  # [f] number of the object among all photos; -1: its label is missing
    detection: np.ndarray  # [f] number of the contradicting detection, by falling score; -1: none


def label_faults(errors: Errors, num_classes: int) -> Faults:
    """Rank the labels by how confidently a detector contradicts them.

    Let p be the share of correct detections among those of the same class and score, and b the p of the detection that finds
    the object (0 if none does). The suspicion is

    - missing: p of a detection that is not a duplicate, reduced by its overlap with an object,
    - wrong class: p of a detection of another class that overlaps the object by 0.5 or more, times 1 - b,
    - wrong box: p of a detection of its class, times how far their overlap is below the usual one,
    - nothing there: the share of objects of its class and of similar size found with a higher b, times 1 - b.

    An object gets the first of the last three that reaches 0.2, otherwise the last. Nobody knows how often people make each
    mistake, so suspicions of different kinds are not comparable: the list takes the likeliest of each kind in turn.

    Args:
        errors: of the photos.
        num_classes: without background.
    """
    found, objects = errors.found, errors.objects
    num_objects = len(objects.labels)
    right, is_hit = share_right(errors, num_classes), errors.kind == HIT
    support = np.zeros(num_objects)
    support[errors.object[is_hit]] = right[is_hit]
    doubt = 1 - np.append(support, 0)[errors.object]  # in the label of each detection's object
    contradicted = (
        _strongest(right * doubt * (errors.kind == CLASSIFICATION), errors.object, num_objects),
        _strongest(right * _displaced(errors, doubt), errors.object, num_objects),
    )
    unseen = found_share(errors, support) * (1 - support), np.full(num_objects, -1)
    suspicion, detection = (np.stack(parts) for parts in zip(*contradicted, unseen, strict=True))  # [3, m]
    counting = np.flatnonzero(objects.values == 0)
    place = np.where(suspicion[0] >= LEAST, 0, np.where(suspicion[1] >= LEAST, 1, 2))[counting]
    missing, missing_suspicion = _missing(errors, right * np.where(errors.kind == LOCALISATION, 1 - doubt, 1))
    every = Faults(
        np.concatenate([place + WRONG_CLASS, np.full(len(missing), MISSING)]),
        np.concatenate([suspicion[place, counting], missing_suspicion]),
        np.concatenate([objects.image[counting], found.image[missing]]),
        np.concatenate([counting, np.full(len(missing), -1)]),
        np.concatenate([detection[place, counting], missing]),
    )
    order = _in_turn(every)
    return Faults(*(part[order] for part in every))


def share_right(errors: Errors, num_classes: int) -> np.ndarray:
    """Return, for each detection, the share of correct ones among those of its class and a similar score `[n]`. Duplicates and
    detections that claim a difficult object do not count."""
    judged = (errors.kind != DUPLICATE) & (errors.kind != IGNORED)
    scores, labels, hit = errors.found.values[judged], errors.found.labels[judged], errors.kind[judged] == HIT
    place = labels * BINS + np.minimum((scores * BINS).astype(int), BINS - 1)
    total, hits = (
        np.bincount(place, weights, minlength=num_classes * BINS).reshape(num_classes, BINS) for weights in (None, hit)
    )
    overall = hits.sum(axis=0) / np.maximum(total.sum(axis=0), 1)
    share = (hits + PULL * overall) / (total + PULL)
    position = np.clip(errors.found.values * BINS - 0.5, 0, BINS - 1)  # interpolate between the centres of bins
    low = np.minimum(position.astype(int), BINS - 2)
    weight, labels = position - low, errors.found.labels
    return (1 - weight) * share[labels, low] + weight * share[labels, low + 1]


def found_share(errors: Errors, support: np.ndarray) -> np.ndarray:
    """Return, for each object, the share of objects of its class and similar size found with more support `[m]`.

    Args:
        errors: of the photos.
        support: `[m]` precision of the detection that finds each object; 0: none.
    """
    objects = errors.objects
    area = np.prod(objects.boxes[:, 2:] - objects.boxes[:, :2] + 1, axis=1)
    order = np.lexsort([area, objects.labels])
    labels, ours = objects.labels[order], support[order]
    first, end = np.searchsorted(labels, labels, "left"), np.searchsorted(labels, labels, "right")
    begin = np.clip(np.arange(len(order)) - ALIKE // 2, first, np.maximum(end - ALIKE - 1, first))
    place = begin[:, None] + np.arange(ALIKE + 1)  # [m, ALIKE + 1]
    is_alike = place < end[:, None]
    more = (ours[np.minimum(place, len(order) - 1)] > ours[:, None]) & is_alike
    share = np.zeros(len(order))
    share[order] = more.sum(axis=1) / (is_alike.sum(axis=1) + 1)
    return share


def _displaced(errors: Errors, doubt: np.ndarray) -> np.ndarray:
    """Return how far each detection's overlap with an object of its class is below the usual one `[n]`, 0..1."""
    is_hit = errors.kind == HIT
    usual = np.median(errors.overlap[is_hit]) if is_hit.any() else IOU_THRESH
    distance = np.clip(1 - errors.overlap / usual, 0, 1)
    return np.where(is_hit, distance, np.where(errors.kind == LOCALISATION, distance * doubt, 0))


def _strongest(suspicion: np.ndarray, of_object: np.ndarray, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest suspicion of each object `[m]`, and the detection that causes it `[m]`, -1 for none."""
    largest, source = np.zeros(num_objects), np.full(num_objects, -1)
    rows = np.flatnonzero(suspicion > 0)
    rows = rows[np.argsort(suspicion[rows], kind="stable")]  # the last assignment to an object wins
    largest[of_object[rows]], source[of_object[rows]] = suspicion[rows], rows
    return largest, source


def _missing(errors: Errors, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the detections of possibly missing labels, one at each place, and their suspicion, given their precision."""
    is_beside = errors.kind == LOCALISATION
    near = np.where(is_beside, IOU_THRESH, 1)  # a detection that overlaps an object of its class is likely a part of it
    suspicion = chance * (1 - errors.overlap / near) * (is_beside | np.isin(errors.kind, (NO_OBJECT, BOTH)))
    rows = np.flatnonzero(suspicion >= LEAST)
    boxes = errors.found.boxes[rows]
    apart = boxes + (boxes.max(initial=0) + 1) * errors.found.image[rows, None]  # shift photos apart
    kept = nms(torch.from_numpy(apart), torch.from_numpy(suspicion[rows]), IOU_THRESH).numpy()
    return rows[kept], suspicion[rows[kept]]


def _in_turn(faults: Faults) -> np.ndarray:
    """Return the order with the likeliest of each kind first, then the second of each kind, and so on."""
    by_kind = np.lexsort([-faults.suspicion, faults.kind])
    kinds = faults.kind[by_kind]
    rank = np.zeros(len(kinds), np.int64)
    rank[by_kind] = np.arange(len(kinds)) - np.searchsorted(kinds, kinds)
    return np.lexsort([-faults.suspicion, rank])
