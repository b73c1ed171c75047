"""Photos that look alike: copies that were scaled, encoded again, brightened or mirrored, and neighbouring frames of a film.

Each photo has a grey thumbnail, made when it is checked. Two photos look alike if the fine structure of their thumbnails
correlates: on VOC2007, BCCD and a set of photos from the web, all pairs above `ALIKE` show the same scene, and copies that were
encoded again, scaled or brightened have 0.9 or more. Unlike a perceptual hash, the correlation tells clear skies apart.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 16  # of a thumbnail, pixels
BLUR = 2.0  # standard deviation; what is coarser is ignored: many photos have a bright sky above dark ground
MIN_CONTRAST = 1.0  # grey levels of fine structure; a photo with less, such as a blank page, is like no other
ALIKE = 0.8
MAX_PAIRS = 2**24  # compared at a time, which takes some 150 MB


class Alike(NamedTuple):
    """A photo, and others that look like it."""

    photo: int  # index
    others: np.ndarray  # [k] int64, indices
    similarity: np.ndarray  # [k] float32, up to 1


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return the grey thumbnail `[SIDE, SIDE]` uint8 of a photo `[H, W, 3]` uint8 RGB."""
    return cv2.cvtColor(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def find_alike(thumbnails: np.ndarray, others: np.ndarray | None = None) -> Iterator[Alike]:
    """Yield each photo that looks like others, also if one is mirrored.

    Args:
        thumbnails: `[n, SIDE, SIDE]` uint8.
        others: `[m, SIDE, SIDE]`, to compare with; by default each photo is compared with those after it.
    """
    even, odd = _even_and_odd(thumbnails)
    their_even, their_odd = (even, odd) if others is None else _even_and_odd(others)
    start = 0
    while start < len(even):
        first = start if others is None else 0  # each pair once
        end = start + max(MAX_PAIRS // max(len(their_even) - first, 1), 1)
        # Mirroring changes the sign of the odd part only.
        similarity = np.abs(odd[start:end] @ their_odd[first:].T)
        similarity += even[start:end] @ their_even[first:].T
        is_alike = similarity >= ALIKE
        if others is None:
            is_alike &= np.arange(is_alike.shape[1]) > np.arange(len(is_alike))[:, None]
        for row in np.flatnonzero(is_alike.any(axis=1)).tolist():
            columns = np.flatnonzero(is_alike[row])
            yield Alike(start + row, first + columns, similarity[row, columns])
        start = end


def _even_and_odd(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of the descriptors that mirroring keeps and negates, `[n, SIDE * SIDE / 2]` each."""
    fine = descriptors(thumbnails)
    left, right = fine[:, :, : SIDE // 2], fine[:, :, : SIDE // 2 - 1 : -1]
    return tuple((part / np.sqrt(np.float32(2))).reshape(-1, SIDE * SIDE // 2) for part in (left + right, left - right))


def similarities(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the similarity `[n]` of thumbnails `[n, SIDE, SIDE]` one by one, without mirroring."""
    return np.einsum("nhw,nhw->n", descriptors(one), descriptors(other))


def descriptors(thumbnails: np.ndarray) -> np.ndarray:
    """Return the fine structure of thumbnails `[n, SIDE, SIDE]`, with unit length; zeros for photos without any."""
    grey = thumbnails.astype(np.float32)
    blur = cv2.GaussianBlur(np.eye(SIDE, dtype=np.float32), (1, 4 * int(BLUR) + 5), 0, sigmaY=BLUR)
    fine = grey - blur @ grey @ blur.T
    length = np.sqrt(np.square(fine).sum(axis=(1, 2), keepdims=True))
    return np.where(length >= MIN_CONTRAST * SIDE, fine / np.maximum(length, 1e-6), 0)
