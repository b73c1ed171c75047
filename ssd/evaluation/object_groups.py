"""AP of groups of objects: by their size, by how crowded they are, and by whether they are cut off."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ssd.evaluation.error_kinds import BACKGROUND, HIT, IGNORED, Errors
from ssd.evaluation.overlap import pairs_within, pixel_iou
from ssd.evaluation.voc_eval import Flat, average_precision

CROWDED = 2  # neighbours, from which on it makes no difference how many


class Group(NamedTuple):
    """Some of the objects, and how well they are found."""

    name: str
    num_objects: int  # that count
    found: float  # the share that is found from the score on that was asked for; NaN without objects
    ap: float  # the mean over the classes that have such objects; NaN without objects


def by_size(
    errors: Errors, sizes: np.ndarray, side: int, edges: Sequence[int], score_thresh: float, use_07_metric: bool
) -> list[Group]:
    """Groups by an object's size, the root of its area in the network's input.

    Args:
        errors: of a data set.
        sizes: `[photos, 2]` width and height of every photo.
        side: of the network's input, in pixels.
        edges: where the groups begin and end, in pixels of the network's input.
        score_thresh: from which on an object counts as found.
        use_07_metric: as of `voc_eval`.
    """
    objects = errors.objects
    scale = side / np.asarray(sizes, np.float64)[objects.image]  # [m, 2]
    extent = np.sqrt(np.prod((objects.boxes[:, 2:] - objects.boxes[:, :2] + 1) * scale, axis=1))
    names = [f"{low} to {min(high, side)}" for low, high in pairwise(edges)]
    group = np.searchsorted(edges[1:-1], extent, side="right")
    return _groups(errors, group, names, score_thresh, use_07_metric)


def by_crowding(errors: Errors, score_thresh: float, use_07_metric: bool) -> list[Group]:
    """Groups by how many other objects of its photo, of any class, an object overlaps by 0.1 or more."""
    group = np.minimum(neighbours(errors.objects), CROWDED)
    names = ["alone", "one neighbour", "more neighbours"]
    return _groups(errors, group, names, score_thresh, use_07_metric)


def by_truncation(
    errors: Errors, ground_truth: Sequence[Mapping[str, np.ndarray]], score_thresh: float, use_07_metric: bool
) -> list[Group]:
    """Groups by the flag `truncated`, as VOC has it; none where the ground truth has it nowhere.

    Args:
        errors: of a data set.
        ground_truth: an entry a photo: `truncated` `[m]`, 1 or 0, -1 where it is not told, or nothing of that name.
        score_thresh: from which on an object counts as found.
        use_07_metric: as of `voc_eval`.
    """
    flags = [entry.get("truncated", np.full(len(entry["labels"]), -1)) for entry in ground_truth]
    flag = np.concatenate([np.zeros(0, int), *flags]).astype(int)
    return _groups(errors, flag, ["whole", "cut off"], score_thresh, use_07_metric) if (flag >= 0).any() else []


def neighbours(objects: Flat) -> np.ndarray:
    """How many others of its image each object overlaps by 0.1 or more `[m]`."""
    count = np.zeros(len(objects.labels), np.int64)
    for rows, begin, other in pairs_within(objects.image, objects.image):
        row = np.repeat(rows, np.diff(np.append(begin, len(other))))
        meets = (pixel_iou(objects.boxes[row], objects.boxes[other]) >= BACKGROUND) & (row != other)
        count += np.bincount(row[meets], minlength=len(count))
    return count


def _groups(errors: Errors, group: np.ndarray, names: Sequence[str], score_thresh: float, use_07_metric: bool) -> list[Group]:
    """The groups of number 0 and above; those without an object that counts are left out."""
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
        takes_part = is_hit | ((errors.kind != HIT) & (errors.kind != IGNORED))
        aps = []
        for label in labels:
            rows = np.flatnonzero(takes_part & (found.labels == label))
            num_mine, num_all = (int((each & (objects.labels == label)).sum()) for each in (mine, counts))
            if num_mine:
                aps.append(normalised_ap(is_hit[rows], found.values[rows], num_mine, num_all, use_07_metric))
        share = float((is_hit & (found.values >= score_thresh)).sum() / mine.sum())
        result.append(Group(name, int(mine.sum()), share, float(np.mean(aps))))
    return result


def normalised_ap(hit: np.ndarray, scores: np.ndarray, num_mine: int, num_all: int, use_07_metric: bool) -> float:
    """AP of some of the objects of a class that compares with that of all of them (Hoiem, Chodpathumwan, Dai: Diagnosing Error
    in Object Detectors, ECCV 2012, section 2.2).

    A false positive belongs to no group, so all of them count, and would weigh the more the smaller the group is. Precision is
    what it would be if, at this recall, there were as many objects of the group as there are of the class.

    Args:
        hit: `[n]` whether each detection, in falling score, finds an object of the group; those that find others are left out.
        scores: `[n]` of the detections.
        num_mine: objects of the group.
        num_all: objects of the class.
        use_07_metric: as of `voc_eval`.
    """
    ends = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # no threshold parts equal scores
    recall, false = (np.cumsum(hit) / num_mine)[ends], np.cumsum(~hit)[ends]
    expected = recall * num_all
    return average_precision(recall, expected / np.maximum(expected + false, 1e-12), use_07_metric)
