"""Photos of a data set: decoded as their annotations see them, and looked at before training relies on them."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.annotation import Damaged, DataError, PhotoSize, Unreachable
from ssd.system.images import MAX_PIXELS, ImageError, decode, opened, read_bytes

ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112  # the EXIF tag
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
        DataError: the file is missing, is no image, or has another size.
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
        Damaged: the file is missing, empty, no image, cut off, or larger than MAX_PIXELS.
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
            is_rotated = _is_rotated(header)
    except Exception as error:  # Pillow raises what its many parsers raise: of a broken file anything can come
        raise Damaged(f"{path}: is no image ({type(error).__name__}); {REMEDY}") from None
    if width * height > MAX_PIXELS:
        raise Damaged(f"{path}: has {width} × {height} pixels, more than {MAX_PIXELS:,}; scale it down")
    try:
        image = decode(encoded, path, upright=False)
        upright = decode(encoded, path) if is_rotated else image
    except ImageError:
        raise Damaged(f"{path}: cannot be decoded, being damaged or cut off; {REMEDY}") from None
    return PhotoSize(image.shape[1], image.shape[0], upright.shape[1], upright.shape[0])


def _is_rotated(header: Image.Image) -> bool:
    """Whether EXIF asks for width and height to be swapped."""
    if header.format == "PNG" and "exif" not in header.info:
        return False  # to ask further would be to decode all of it
    return header.getexif().get(ORIENTATION) in ROTATED
