"""Photos and pictures as files: bytes to pixels and back, whatever the name, the format and the orientation.

It is here, among what belongs to the machine, since training and prediction both read photos and neither uses the other.
"""

import io
import os
import re
import threading
import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin

from ssd.system.errors import UserError, first_line
from ssd.system.files import write_whole

# What is read, by Pillow's names, and the suffixes that such files have. Formats that hold programs (EPS) are not among them.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "SUN")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs", ".pbm", ".pgm", ".ppm", ".pnm", ".ras"),
)
# Suffixes that OpenCV does not know, or not for colours, and those whose formats it writes in their place.
WRITTEN_AS = {
    **dict.fromkeys((".jfif", ".mpo"), ".jpg"), **dict.fromkeys((".pbm", ".pgm"), ".ppm"),
    **dict.fromkeys((".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), ".jp2"), ".avifs": ".avif",
}  # fmt: skip
# Suffixes of other photos and pictures, to tell that they were passed over.
HEIC = (".heic", ".heif", ".hif")
NOT_READ = (
    *HEIC, *(".jxl", ".jxr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".psd", ".xcf", ".tga", ".pcx", ".sgi", ".ico", ".svg", ".eps", ".exr", ".hdr", ".pfm", ".dcm", ".nii"),
)  # fmt: skip
HEIC_REMEDY = "HEIC is converted to JPEG by macOS's sips -s format jpeg, by heif-convert of libheif, or as the phone exports it"

# 134 megapixels, 400 MB once decoded: more than any camera takes, little enough for a few processes at once.
MAX_PIXELS = 2**27

ORIENTATION = 0x0112  # the EXIF tag
TURNED_BACK = {6: 8, 8: 6}  # orientations that undo others; the rest undo themselves
SAMPLES = {1: "whole numbers", 2: "signed numbers", 3: "floating-point numbers"}  # by TIFF's SampleFormat
JPEG = b"\xff\xd8\xff"  # how such files begin

# What libjpeg says of files that it reads whole: cameras pad them ("extraneous bytes before marker"), or write unusual headers.
WHOLE = re.compile(
    r"Corrupt JPEG data: \d+ extraneous bytes|Warning: unknown JFIF|Unknown Adobe color transform|Invalid SOS parameters"
    r"|Inconsistent progression sequence|Application transferred too many"
)

_opening = threading.Lock()  # filters of warnings are those of the process: threads would restore one another's

# A file that cannot be read is reported once, in our words; OpenCV would warn of it besides.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageError(UserError):
    """Something that is no photo, or a picture that cannot be written; the message says which, and why not."""


class TooLarge(ImageError):
    """A photo of more than MAX_PIXELS, by its header."""


def read_photo(path: str | Path) -> np.ndarray:
    """A photo from a file, turned upright as its EXIF says, `[H, W, 3]` uint8 RGB.

    Raises:
        ImageError: the file is missing, damaged, too large, or no image that can be decoded.
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


def decode(encoded: np.ndarray, path: str | Path) -> np.ndarray:
    """The pixels of an encoded photo, turned upright; arguments and errors are those of `decode_stored`."""
    image, orientation = decode_stored(encoded, path)
    return turned(image, orientation)


def decode_stored(encoded: np.ndarray, path: str | Path) -> tuple[np.ndarray, int]:
    """The pixels of an encoded photo as they are stored, and how EXIF wants them turned. Grey, palette, alpha and 16 bits
    become 8-bit RGB; of several frames the first is taken.

    Args:
        encoded: `[n]` uint8, the bytes of a file.
        path: of the file, for the message.

    Returns:
        `[H, W, 3]` uint8, RGB, and the orientation, 1 (as it is) to 8.

    Raises:
        TooLarge: by its header, which is read before any memory is taken.
        ImageError: it cannot be decoded, or pixels of it are lost.
    """
    if not encoded.size:
        raise ImageError(f"{printable(path)}: is no image that can be decoded: it is empty")
    header, orientation = _open(encoded, path)
    require_decodable(header, printable(path))
    try:
        image = _decode_jpeg(encoded, header) if encoded[: len(JPEG)].tobytes() == JPEG else to_rgb(header)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises what its many decoders raise: of a broken file anything can come
        what = "is damaged or cut off, so that not all of the picture can be decoded"
        raise ImageError(f"{printable(path)}: {what} ({first_line(error)})") from None
    if header.format == "TIFF":  # Pillow turns these upright
        image = turned(image, TURNED_BACK.get(orientation, orientation))
    return image, orientation


def _open(encoded: np.ndarray, path: str | Path) -> tuple[Image.Image, int]:
    """A photo as Pillow opens it, which reads its header alone, and its EXIF orientation."""
    try:
        # EXIF blocks that are broken count as none: Pillow warns of them.
        with _opening, warnings.catch_warnings(action="ignore"):
            header = Image.open(io.BytesIO(encoded.data), formats=FORMATS)
            if header.format == "PNG" and "exif" not in header.info:
                return header, 1  # to ask further would be to decode all of it
            return header, header.getexif().get(ORIENTATION, 1)
    except Image.DecompressionBombError as error:  # Pillow's own limit is a little higher
        number = "".join(re.findall(r"\d+", str(error))[:1])
        raise TooLarge(f"{printable(path)}: has {int(number):,} pixels, more than {MAX_PIXELS:,}; scale it down") from None
    except Exception:
        raise ImageError(f"{printable(path)}: {_tiff_kind(encoded) or 'is no image that can be decoded'}") from None


def _tiff_kind(encoded: np.ndarray) -> str:
    """What to say of a whole TIFF of pixels that Pillow has no mode for; empty of anything else."""
    file = io.BytesIO(encoded.data)
    try:
        with _opening, warnings.catch_warnings(action="ignore"):
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        bits = tags[TiffImagePlugin.BITSPERSAMPLE]
        kind = SAMPLES[tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]]
    except Exception:  # of a broken file anything can come
        return ""
    return f"its pixels have {len(bits)} channel(s) of {bits[0]}-bit {kind}, which cannot be read; save it with 8 bits"


def require_decodable(header: Image.Image, name: str) -> None:
    """
    Args:
        header: of a photo, whose pixels need not be there yet.
        name: for the message.

    Raises:
        TooLarge: it has more than MAX_PIXELS.
        ImageError: its pixels are of a kind that says nothing of black and white.
    """
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise TooLarge(f"{name}: has {width} × {height} pixels, more than {MAX_PIXELS:,}; scale it down")
    if header.mode == "F" or (header.mode == "I" and header.format != "PPM"):
        kind = "floating-point numbers" if header.mode == "F" else "whole numbers of 32 bits, or with a sign"
        raise ImageError(f"{name}: its pixels are {kind}, of no known range; save it with 8 or 16 bits")


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image that `require_decodable` lets pass, `[H, W, 3]` uint8 RGB; Pillow raises what its many
    decoders raise."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut off at 255 what should be scaled to it
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        # Pillow inverts a TIFF in which 0 is white only if it has 8 bits.
        is_inverted = image.format == "TIFF" and image.getexif().get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        return cv2.cvtColor(255 - grey if is_inverted else grey, cv2.COLOR_GRAY2RGB)
    image.info.pop("transparency", None)  # which Pillow would warn of
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _decode_jpeg(encoded: np.ndarray, header: Image.Image) -> np.ndarray:
    """Where a file is damaged libjpeg fills in pixels of its own, and goes on. Pillow drops what it says of that, and OpenCV
    prints it; here any warning of a loss is an error.

    Raises:
        ValueError: in libjpeg's words.
    """
    try:
        return simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError as error:
        if not WHOLE.match(str(error)):
            raise
    return to_rgb(header)


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image `[H, W, 3]` turned upright from the way that an EXIF orientation, 1 to 8, says it is stored."""
    upright = {
        2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: image.swapaxes(0, 1),
        6: np.rot90(image, -1), 7: np.rot90(image[::-1]), 8: np.rot90(image),
    }  # fmt: skip
    return np.ascontiguousarray(upright.get(orientation, image))


def passed_over(counts: Mapping[str, int]) -> str:
    """What to say of photos that are not read, by how many files there are of each suffix; empty where there are none."""
    found = [suffix for suffix in NOT_READ if counts.get(suffix)]
    if not found:
        return ""
    remedy = HEIC_REMEDY if found[0] in HEIC else "convert them to JPEG or PNG"
    return f"{', '.join(f'{counts[suffix]} {suffix}' for suffix in found)} cannot be read and were passed over; {remedy}"


def write_picture(path: Path, image: np.ndarray) -> None:
    """Writes a picture `[H, W, 3]` uint8 RGB, in the format that its suffix names, or one near it; folders on the way are made.

    Raises:
        ImageError: the format has no room for a picture of that size.
        OSError: the file cannot be written.
    """
    # Not by cv2.imwrite, which ends the process on a name that is not UTF-8.
    suffix = path.suffix.lower()
    try:
        is_encoded, encoded = cv2.imencode(WRITTEN_AS.get(suffix, suffix), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        is_encoded, encoded = False, np.zeros(0, np.uint8)
    if not is_encoded:
        height, width = image.shape[:2]
        raise ImageError(f"{printable(path)}: {width} × {height} pixels cannot be written as {suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(encoded.data), outlasts_power_cut=False)


def printable(name: str | Path) -> str:
    r"""A file's name as text that every format and terminal takes: bytes that are not UTF-8 and control characters as \x..."""
    return "".join(_escaped(letter) if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in str(name))


def _escaped(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code:02x}"  # as os.fsdecode hides such bytes in a text
