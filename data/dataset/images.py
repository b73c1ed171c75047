"""Photos of a data set: decoded as their annotations see them, and looked at before training relies on them."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.dataset.annotation import Damaged, DataError, PhotoSize, Unreachable
from data.dataset.disk_cache import digest_of
from ssd.system.images import ImageError, TooLarge, decode_stored, read_bytes, turned

ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
REMEDY = "replace it, or take it out of the split"

# OpenCV's own threads would fight the loader's processes for the cores.
cv2.setNumThreads(0)


class Look(NamedTuple):
    """What a look at a photo shows."""

    size: PhotoSize
    content: int  # a digest of its file: the same for copies under other names


def read_image(path: str | Path, size: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Decodes a photo, turned as its annotation sees it.

    Annotation tools show photos upright, as EXIF says; only where the annotation gives the size of the pixels as they are
    stored, as VOC's own tools do, are they taken so.

    Args:
        path: a photo of any of the formats that are read.
        size: width and height that the annotation gives, or (0, 0).

    Returns:
        `[H, W, 3]` uint8, RGB.

    Raises:
        DataError: the file is missing, is no image, is damaged, or has another size.
    """
    try:
        stored, orientation = decode_stored(read_bytes(path), path)
    except ImageError as error:
        raise DataError(f"{error}; {REMEDY}") from None
    image = turned(stored, orientation)
    if size[0] and (image.shape[1], image.shape[0]) == size[::-1] != size:
        image = stored
    if size[0] and (image.shape[1], image.shape[0]) != size:
        got = f"{image.shape[1]} × {image.shape[0]}"
        raise DataError(f"{path}: the annotation says {size[0]} × {size[1]} pixels, the photo has {got}; mend <size>")
    return image


def inspect_photo(path: Path) -> Look:
    """Looks at a whole photo once, before training relies on it.

    Raises:
        Unreachable: the file is missing, or the system does not hand it out.
        Damaged: it is empty, no image, damaged, cut off, or too large.
    """
    try:
        encoded = read_bytes(path)
    except ImageError as error:
        raise Unreachable(str(error)) from None
    if not encoded.size:
        raise Damaged(f"{path}: is empty; {REMEDY}")
    try:
        stored, orientation = decode_stored(encoded, path)
    except TooLarge as error:
        raise Damaged(str(error)) from None
    except ImageError as error:
        raise Damaged(f"{error}; {REMEDY}") from None
    height, width = stored.shape[:2]
    upright = (height, width) if orientation in ROTATED else (width, height)
    return Look(PhotoSize(width, height, *upright), digest_of(encoded.data))
