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
CHUNK = 1024  # photos compared with all others at a time


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
    ours = descriptors(thumbnails)
    theirs = ours if others is None else descriptors(others)
    for start in range(0, len(ours), CHUNK):
        chunk = ours[start : start + CHUNK]
        mirrored = chunk[:, :, ::-1].reshape(len(chunk), -1)
        columns = theirs.reshape(len(theirs), -1).T
        similarity = np.maximum(chunk.reshape(len(chunk), -1) @ columns, mirrored @ columns)
        is_alike = similarity >= ALIKE
        if others is None:  # each pair once
            is_alike &= np.arange(len(theirs)) > start + np.arange(len(chunk))[:, None]
        for row in np.flatnonzero(is_alike.any(axis=1)).tolist():
            columns_alike = np.flatnonzero(is_alike[row])
            yield Alike(start + row, columns_alike, similarity[row, columns_alike])


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
