"""AP of groups of objects: by size, by crowding and by truncation."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ssd.evaluation.error_kinds import BACKGROUND, HIT, IGNORED, Errors
from ssd.evaluation.overlap import pairs_within, pixel_iou
from ssd.evaluation.voc_eval import AveragePrecision, Flat

CROWDED = 2  # neighbours; objects with more are in the same group


class Group(NamedTuple):
    """Some of the objects, and how well they are found."""

    name: str
    num_objects: int  # without difficult ones
    found: float  # share of the objects found
    ap: float  # mean over the classes with such objects


def by_size(errors: Errors, sizes: np.ndarray, side: int, edges: Sequence[int], score_thresh: float) -> list[Group]:
    """Group objects by size: the square root of their area in the network's input.

    Args:
        errors: of the photos.
        sizes: `[photos, 2]` width and height of every photo.
        side: of the network's input, in pixels.
        edges: limits of the groups, in pixels of the network's input.
        score_thresh: minimum score of a detection that finds an object.
    """
    objects = errors.objects
    scale = side / np.asarray(sizes, np.float64)[objects.image]  # [m, 2]
    extent = np.sqrt(np.prod((objects.boxes[:, 2:] - objects.boxes[:, :2] + 1) * scale, axis=1))
    names = [f"{low} to {min(high, side)}" for low, high in pairwise(edges)]
    group = np.searchsorted(edges[1:-1], extent, side="right")
    return _groups(errors, group, names, score_thresh)


def by_crowding(errors: Errors, score_thresh: float) -> list[Group]:
    """Group objects by the number of other objects in the photo, of any class, that they overlap by 0.1 or more."""
    group = np.minimum(neighbours(errors.objects), CROWDED)
    names = ["alone", "one neighbour", "more neighbours"]
    return _groups(errors, group, names, score_thresh)


def by_truncation(errors: Errors, ground_truth: Sequence[Mapping[str, np.ndarray]], score_thresh: float) -> list[Group]:
    """Group objects by VOC's flag `truncated`; return no groups if no object has the flag.

    Args:
        errors: of the photos.
        ground_truth: one entry for each photo, with `truncated` `[m]`: 1, 0 or -1 (unknown), or without it.
        score_thresh: minimum score of a detection that finds an object.
    """
    flags = [entry.get("truncated", np.full(len(entry["labels"]), -1)) for entry in ground_truth]
    flag = np.concatenate([np.zeros(0, int), *flags]).astype(int)
    return _groups(errors, flag, ["whole", "cut off"], score_thresh) if (flag >= 0).any() else []


def neighbours(objects: Flat) -> np.ndarray:
    """Return how many other objects in its image each object overlaps by 0.1 or more `[m]`."""
    count = np.zeros(len(objects.labels), np.int64)
    for rows, begin, other in pairs_within(objects.image, objects.image):
        row = np.repeat(rows, np.diff(np.append(begin, len(other))))
        meets = (pixel_iou(objects.boxes[row], objects.boxes[other]) >= BACKGROUND) & (row != other)
        count += np.bincount(row[meets], minlength=len(count))
    return count


def _groups(errors: Errors, group: np.ndarray, names: Sequence[str], score_thresh: float) -> list[Group]:
    """Return the groups, numbered from 0 in `group` `[m]`, except those without objects that count."""
    found, objects = errors.found, errors.objects
    counts = objects.values == 0
    labels = np.flatnonzero(np.bincount(objects.labels[counts])).tolist()
    result = []
    for number, name in enumerate(names):
        mine = counts & (group == number)
        if not mine.any():
            continue
        is_hit = errors.kind == HIT
        is_hit[is_hit] = mine[errors.object[is_hit]]
        is_counted = is_hit | ((errors.kind != HIT) & (errors.kind != IGNORED))
        aps = []
        for label in labels:
            rows = np.flatnonzero(is_counted & (found.labels == label))
            num_mine, num_all = (int((each & (objects.labels == label)).sum()) for each in (mine, counts))
            if num_mine:
                aps.append(normalised_ap(is_hit[rows], found.values[rows], num_mine, num_all, errors.average_precision))
        share = float((is_hit & (found.values >= score_thresh)).sum() / mine.sum())
        result.append(Group(name, int(mine.sum()), share, float(np.mean(aps))))
    return result


def normalised_ap(
    hit: np.ndarray, scores: np.ndarray, num_mine: int, num_all: int, average_precision: AveragePrecision
) -> float:
    """Return the AP of a group of objects of a class, comparable with the AP of the whole class (Hoiem, Chodpathumwan, Dai:
    Diagnosing Error in Object Detectors, ECCV 2012, section 2.2).

    False positives belong to no group, so all of them count, and they would weigh more in a smaller group. Precision is
    therefore computed as if, at the same recall, the group had as many objects as the class.

    Args:
        hit: `[n]` whether each detection, by falling score, finds an object of the group; without those that find others.
        scores: `[n]` of the detections.
        num_mine: objects of the group.
        num_all: objects of the class.
        average_precision: AP of a curve.
    """
    ends = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # no threshold separates equal scores
    recall, false = (np.cumsum(hit) / num_mine)[ends], np.cumsum(~hit)[ends]
    expected = recall * num_all
    return average_precision(recall, expected / np.maximum(expected + false, 1e-12))
