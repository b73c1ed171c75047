"""Photos of a data set: decoded as their annotations see them, and looked at before training relies on them."""

from pathlib import Path

import cv2
import numpy as np

from data.annotation import Damaged, DataError, PhotoSize, Unreachable
from ssd.system.images import MAX_PIXELS, ImageError, decode, opened, orientation_of, read_bytes

ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
REMEDY = "replace it, or take it out of the split"

# OpenCV's own threads would fight the loader's processes for the cores.
cv2.setNumThreads(0)


def read_image(path: str | Path, size: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Decodes a photo, turned as its annotation sees it.

    Annotation tools show photos upright, as EXIF says; only where the annotation gives the size of the pixels as they are
    stored, as VOC's own tools do, are they taken so.

    Args:
        path: a file that OpenCV reads; grey, palette and alpha become RGB.
        size: width and height that the annotation gives, or (0, 0).

    Returns:
        `[H, W, 3]` uint8, RGB.

    Raises:
        DataError: the file is missing, is no image, is damaged, or has another size.
        OSError: the process has no file descriptors left.
    """
    try:
        encoded = read_bytes(path)
        image = decode(encoded, path)
        if size[0] and (image.shape[1], image.shape[0]) == size[::-1] != size:
            image = decode(encoded, path, upright=False)
    except ImageError as error:
        raise DataError(f"{error}; {REMEDY}") from None
    if size[0] and (image.shape[1], image.shape[0]) != size:
        got = f"{image.shape[1]} × {image.shape[0]}"
        raise DataError(f"{path}: the annotation says {size[0]} × {size[1]} pixels, the photo has {got}; mend <size>")
    return image


def inspect_photo(path: Path) -> PhotoSize:
    """Looks at a whole photo once, before training relies on it.

    Raises:
        Unreachable: the file is missing, or the system does not hand it out.
        Damaged: it is empty, no image, damaged, cut off, or larger than MAX_PIXELS.
    """
    try:
        encoded = read_bytes(path)
    except ImageError as error:
        raise Unreachable(str(error)) from None
    if not encoded.size:
        raise Damaged(f"{path}: is empty; {REMEDY}")
    try:
        with opened(encoded) as header:
            width, height = header.size
            is_rotated = orientation_of(header) in ROTATED
    except Exception as error:  # Pillow raises what its many parsers raise: of a broken file anything can come
        raise Damaged(f"{path}: is no image ({type(error).__name__}); {REMEDY}") from None
    if width * height > MAX_PIXELS:
        raise Damaged(f"{path}: has {width} × {height} pixels, more than {MAX_PIXELS:,}; scale it down")
    try:
        image = decode(encoded, path, upright=False)
        upright = decode(encoded, path) if is_rotated else image
    except ImageError:
        raise Damaged(f"{path}: is damaged or cut off, so that not all of the picture can be decoded; {REMEDY}") from None
    except OSError as error:
        raise Unreachable(f"{path}: cannot be read: {error.strerror}") from None
    return PhotoSize(image.shape[1], image.shape[0], upright.shape[1], upright.shape[0])
