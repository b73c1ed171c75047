"""Photos: decoded in the orientation of their annotations, and checked before training."""

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.dataset.disk_cache import content_digest
from data.dataset.errors import DamagedError, DataError, UnreachableError
from data.dataset.photo_objects import PhotoSize
from data.dataset.similar import thumbnail
from ssd.system.images import (
    ROTATED,
    DecodedPhoto,
    ImageError,
    Reduction,
    TooLarge,
    decode_stored,
    read_bytes,
    read_exif,
    turned,
    upright,
    whole,
)

CAMERA_TAGS = (0x010F, 0x0110, 0xA431)  # EXIF: make, model, serial number
TIME_TAG = 0x9003  # EXIF: when the photo was taken
REMEDY = "replace it, or remove it from the split"

# OpenCV's own threads would compete with the loader's processes for the cores.
cv2.setNumThreads(0)


class PhotoInfo(NamedTuple):
    """The result of checking a photo."""

    size: PhotoSize
    content: int  # digest of the file, equal for copies under other names
    thumbnail: bytes  # grey, upright: `similar.SIDE` rows of as many bytes
    captured: tuple[int, int]  # digest of the camera's name, and seconds; zeros if unknown


def read_image(path: str | Path, size: tuple[int, int] = (0, 0), reduction: Reduction = whole) -> DecodedPhoto:
    """Decode a photo in the orientation of its annotation.

    Most annotation tools show photos upright, as EXIF says. Only if the annotation gives the size of the stored pixels, as
    VOC's own tools do, is the photo left as stored.

    Args:
        path: a photo in any supported format.
        size: width and height in the annotation, or (0, 0).
        reduction: by how much it may be reduced, as in `ssd.system.images.decode_stored`.

    Raises:
        DataError: the file is missing, not an image, damaged, or of another size.
    """
    try:
        stored, orientation = decode_stored(read_bytes(path), path, reduction)
    except ImageError as error:
        raise DataError(f"{error}; {REMEDY}") from None
    photo = upright(stored, orientation)
    if size[0] and (photo.width, photo.height) == size[::-1] != size:
        photo = stored
    if size[0] and (photo.width, photo.height) != size:
        actual = f"{photo.width} × {photo.height}"
        raise DataError(f"{path}: the annotation says {size[0]} × {size[1]} pixels, but the photo has {actual}; fix <size>")
    return photo


def check_photo(path: Path) -> PhotoInfo:
    """Decode a whole photo, so that training cannot fail on it later.

    Raises:
        UnreachableError: the file is missing, or the system cannot read it.
        DamagedError: the file is empty, not an image, damaged, truncated, or too large.
    """
    try:
        encoded = read_bytes(path)
    except ImageError as error:
        raise UnreachableError(str(error)) from None
    if not encoded.size:
        raise DamagedError(f"{path}: is empty; {REMEDY}")
    try:
        stored, orientation = decode_stored(encoded, path)
    except TooLarge as error:
        raise DamagedError(str(error)) from None
    except ImageError as error:
        raise DamagedError(f"{error}; {REMEDY}") from None
    width, height = stored.width, stored.height
    shown = (height, width) if orientation in ROTATED else (width, height)
    small = turned(thumbnail(stored.pixels), orientation).tobytes()
    return PhotoInfo(PhotoSize(width, height, *shown), content_digest(encoded.data), small, captured(encoded))


def captured(encoded: np.ndarray) -> tuple[int, int]:
    """Return what a photo's EXIF data say about its origin: a digest of the camera, and the time in seconds; or zeros."""
    exif = read_exif(encoded)
    camera = " ".join(str(exif[tag]) for tag in CAMERA_TAGS if tag in exif)
    try:
        time = datetime.strptime(str(exif[TIME_TAG]).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except (KeyError, ValueError):
        return 0, 0
    return (content_digest(camera.encode()), int((time - datetime.min).total_seconds())) if camera else (0, 0)
