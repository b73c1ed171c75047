"""Photos and pictures as files: bytes to pixels and back, whatever the name, the format and the orientation.

It is here, among what belongs to the machine, since training and prediction both read photos and neither uses the other.
"""

import io
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ssd.system.errors import UserError
from ssd.system.library_messages import heard_messages

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# 134 megapixels, 400 MB once decoded: more than any camera takes, little enough for a few processes at once.
MAX_PIXELS = 2**27

Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS answers, in our words

ORIENTATION = 0x0112  # the EXIF tag
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how such files begin

# What libjpeg says where it has filled in pixels of its own. Its other messages tell of no loss: "extraneous bytes before
# marker" is common in the files of cameras that pad them, the rest is about unusual headers.
LOST_PIXELS = re.compile(r"Corrupt JPEG data: (?:premature end|bad .* code|found marker)|Premature end of JPEG file")

# A file that cannot be read is reported once, in our words; OpenCV would warn of it besides.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageError(UserError):
    """Something that is no photo, or a picture that cannot be written; the message says which, and why not."""


def read_photo(path: str | Path) -> np.ndarray:
    """A photo from a file, turned upright as its EXIF says, `[H, W, 3]` uint8 RGB.

    Raises:
        ImageError: the file is missing, damaged, or no image that can be decoded.
        OSError: the process has no file descriptors left.
    """
    return decode(read_bytes(path), path)


def read_bytes(path: str | Path) -> np.ndarray:
    """All bytes of a file, `[n]` uint8.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"{printable(path)}: cannot be read: {error.strerror}") from None


@contextmanager
def opened(encoded: np.ndarray) -> Iterator[Image.Image]:
    """A photo as Pillow opens it, which reads its header alone; Pillow raises what its many parsers raise.

    Args:
        encoded: `[n]` uint8, the bytes of a file.
    """
    # EXIF blocks that are broken count as none: Pillow warns of them, in opening too.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded.data)) as header:
        yield header


def orientation_of(header: Image.Image) -> int:
    """How EXIF wants a photo turned, 1 (as it is stored) to 8; Pillow raises what its many parsers raise.

    Args:
        header: of a photo that is `opened`.
    """
    if header.format == "PNG" and "exif" not in header.info:
        return 1  # to ask further would be to decode all of it
    return header.getexif().get(ORIENTATION, 1)


def decode(encoded: np.ndarray, path: str | Path, upright: bool = True) -> np.ndarray:
    """The pixels of an encoded photo; grey, palette, alpha and 16 bits become 8-bit RGB.

    Args:
        encoded: `[n]` uint8, the bytes of a file.
        path: of the file, for the message.
        upright: turned as EXIF says, or as the pixels are stored.

    Returns:
        `[H, W, 3]` uint8, RGB.

    Raises:
        ImageError: OpenCV cannot decode it, or says that pixels of a JPEG are lost.
        OSError: the process has no file descriptors left.
    """
    if not encoded.size:
        raise ImageError(f"{printable(path)}: is no image that can be decoded: it is empty")
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    image, is_damaged = _decoded(encoded, flags)
    if is_damaged:  # or what another thread decoded meanwhile
        image, is_damaged = _decoded(encoded, flags, alone=True)
    if image is None:
        raise ImageError(f"{printable(path)}: is no image that can be decoded")
    if is_damaged:
        raise ImageError(f"{printable(path)}: is damaged: a part of the picture is lost")
    return image if upright or encoded[:4].tobytes() not in TIFF else _as_stored(image, encoded)


def _decoded(encoded: np.ndarray, flags: int, alone: bool = False) -> tuple[np.ndarray | None, bool]:
    """What OpenCV makes of a file, and whether libjpeg says that pixels are lost."""
    with heard_messages(alone) as messages:
        try:
            image = cv2.imdecode(encoded, flags)
        except cv2.error:
            image = None
    return image, any(map(LOST_PIXELS.match, messages))


def _as_stored(image: np.ndarray, encoded: np.ndarray) -> np.ndarray:
    """A TIFF, which OpenCV turns upright whatever it is asked for, turned back."""
    try:
        with opened(encoded) as header:
            orientation = orientation_of(header)
    except Exception:  # a kind that Pillow cannot read
        return image
    turned = {
        2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: image.swapaxes(0, 1),
        6: np.rot90(image), 7: np.rot90(image[::-1]), 8: np.rot90(image, -1),
    }  # fmt: skip
    return np.ascontiguousarray(turned.get(orientation, image))


def write_picture(path: Path, image: np.ndarray) -> None:
    """Writes a picture `[H, W, 3]` uint8 RGB, in the format that its suffix names; folders on the way are made.

    Raises:
        ImageError: the format has no room for a picture of that size.
        OSError: the file cannot be written.
    """
    # Not by cv2.imwrite, which ends the process on a name that is not UTF-8.
    try:
        is_encoded, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        is_encoded, encoded = False, np.zeros(0, np.uint8)
    if not is_encoded:
        height, width = image.shape[:2]
        raise ImageError(f"{printable(path)}: {width} × {height} pixels cannot be written as {path.suffix.lower()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())


def printable(name: str | Path) -> str:
    r"""A file's name as text that every format and terminal takes: bytes that are not UTF-8 and control characters as \x..."""
    return "".join(_escaped(letter) if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in str(name))


def _escaped(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code:02x}"  # as os.fsdecode hides such bytes in a text
