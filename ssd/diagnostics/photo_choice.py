"""Which photos to label next: those with uncertain detections that differ from each other."""

import numpy as np

from data.dataset.similar import find_alike


def uncertainty(scores: np.ndarray) -> float:
    """Return how uncertain the detections in a photo are: the sum of `min(score, 1 - score)` over their scores `[n]`.

    A box with two likely classes has a detection of each, so doubts about the class count too.
    """
    return float(np.minimum(scores, 1 - scores).sum())


def choose(values: np.ndarray, features: np.ndarray, thumbnails: np.ndarray, count: int) -> list[int]:
    """Choose photos one by one, each time the one with the largest product of its value and its distance from the nearest
    chosen one. Without the values this is k-centre greedy (Sener and Savarese, ICLR 2018).

    Args:
        values: `[n]`, how much a photo teaches by itself; from 0.
        features: `[n, d]`; only their directions count.
        thumbnails: `[n, 16, 16]` uint8 (`data.dataset.similar`): photos that look like a chosen one are left out.
        count: photos to choose.

    Returns:
        The indices of at most `count` photos, in the order of choice.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    nearest = np.full(len(unit), 2.0)  # the largest possible distance
    is_left = np.ones(len(unit), bool)
    chosen: list[int] = []
    while len(chosen) < count and is_left.any():
        # Of photos without any value, the farthest.
        rank = np.lexsort((nearest, values * nearest, is_left))
        best = int(rank[-1])
        chosen.append(best)
        nearest = np.minimum(nearest, np.linalg.norm(unit - unit[best], axis=1))
        is_left[best] = False
        for alike in find_alike(thumbnails[[best]], thumbnails):
            is_left[alike.others] = False
    return chosen
