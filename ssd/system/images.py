"""Image files: bytes to pixels and back, for any file name, format and EXIF orientation."""

import io
import os
import re
import threading
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, TiffImagePlugin

from ssd.preprocessing import reduced
from ssd.system.errors import UserError, first_line
from ssd.system.files import write_whole

# Supported formats, by Pillow's names, and their suffixes. EPS is left out because such files are programs.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "SUN")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs", ".pbm", ".pgm", ".ppm", ".pnm", ".ras"),
)
# Suffixes for which OpenCV cannot write colour pictures, and those of the formats written instead.
WRITTEN_AS = {
    **dict.fromkeys((".jfif", ".mpo"), ".jpg"), **dict.fromkeys((".pbm", ".pgm"), ".ppm"),
    **dict.fromkeys((".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), ".jp2"), ".avifs": ".avif",
}  # fmt: skip
# Suffixes of unsupported images, to report that they were skipped.
HEIC = (".heic", ".heif", ".hif")
NOT_READ = (
    *HEIC, *(".jxl", ".jxr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".psd", ".xcf", ".tga", ".pcx", ".sgi", ".ico", ".svg", ".eps", ".exr", ".hdr", ".pfm", ".dcm", ".nii"),
)  # fmt: skip
HEIC_REMEDY = "convert HEIC to JPEG by sips -s format jpeg (macOS), by heif-convert (libheif), or when exporting from the phone"

# 134 megapixels, 400 MB decoded: more than any camera has, and small enough for several processes at once.
MAX_PIXELS = 2**27

ORIENTATION = 0x0112  # the EXIF tag
ROTATED = (5, 6, 7, 8)  # orientations that swap width and height
INVERSE = {6: 8, 8: 6}  # inverse orientations; the others are their own inverse
SAMPLES = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers"}  # by TIFF's SampleFormat
JPEG = b"\xff\xd8\xff"  # first bytes of a file
# Factors by which libjpeg reduces a photo while decoding, which saves most of the work after the entropy coding.
REDUCTIONS = (8, 4, 2, 1)

Reduction = Callable[[int, int], int]  # width and height of a photo, pixels → the largest factor by which it may be reduced

# Warnings of libjpeg that lose no pixels: cameras pad files ("extraneous bytes before marker") or write unusual headers.
HARMLESS = re.compile(
    r"Corrupt JPEG data: \d+ extraneous bytes|Warning: unknown JFIF|Unknown Adobe color transform|Invalid SOS parameters"
    r"|Inconsistent progression sequence|Application transferred too many"
)

_opening = threading.Lock()  # warning filters are global: threads would restore those of one another

# Errors are raised with our own message; OpenCV would also print a warning.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageError(UserError):
    """An image cannot be read or written; the message gives the file and the reason."""


class TooLarge(ImageError):
    """The header of a photo states more than MAX_PIXELS."""


class DecodedPhoto(NamedTuple):
    """The pixels of a photo, all of them or at a reduced scale."""

    pixels: np.ndarray  # [h, w, 3] uint8 RGB
    width: int  # of the whole photo, pixels
    height: int

    @classmethod
    def whole(cls, pixels: np.ndarray) -> Self:
        return cls(pixels, pixels.shape[1], pixels.shape[0])

    def part(self, x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
        """Return a part of the pixels. Its edges are in the whole photo's pixels, and rounded to those there are."""
        height, width = self.pixels.shape[:2]
        x1, x2 = (round(x * width / self.width) for x in (x1, x2))
        y1, y2 = (round(y * height / self.height) for y in (y1, y2))
        return self.pixels[y1:y2, x1:x2]


def whole(_width: int, _height: int) -> int:
    """Do not reduce a photo: a `Reduction`."""
    return 1


def read_photo(path: str | Path) -> np.ndarray:
    """Read a photo, upright according to its EXIF orientation, as `[H, W, 3]` uint8 RGB.

    Raises:
        ImageError: the file is missing, damaged, too large, or not a supported image.
    """
    return decode(read_bytes(path), path).pixels


def read_reduced(path: str | Path, reduction: Reduction) -> DecodedPhoto:
    """Read a photo as `read_photo` does, at a reduced scale if `reduction` allows it and its format has it (JPEG)."""
    return decode(read_bytes(path), path, reduction)


def read_bytes(path: str | Path) -> np.ndarray:
    """Read all bytes of a file, `[n]` uint8.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"{printable(path)}: cannot be read: {error.strerror}") from None


def decode(encoded: np.ndarray, path: str | Path, reduction: Reduction = whole) -> DecodedPhoto:
    """Decode a photo and turn it upright; arguments and errors as in `decode_stored`."""
    return upright(*decode_stored(encoded, path, reduction))


def decode_stored(encoded: np.ndarray, path: str | Path, reduction: Reduction = whole) -> tuple[DecodedPhoto, int]:
    """Decode a photo as stored. Grey, palette, alpha and 16-bit images become 8-bit RGB; of several frames, use the first.

    Args:
        encoded: `[n]` uint8, the bytes of a file.
        path: path of the file, for the message.
        reduction: by how much the photo may be reduced. JPEGs are decoded at the next lower scale of 1/2, 1/4 and 1/8; other
            formats, and JPEGs with harmless faults, are decoded whole.

    Returns:
        The photo, and the EXIF orientation, 1 (upright) to 8.

    Raises:
        TooLarge: the header states too many pixels. It is read before memory for them is allocated.
        ImageError: the photo cannot be decoded, or not completely.
    """
    if not encoded.size:
        raise ImageError(f"{printable(path)}: is not an image: the file is empty")
    header, orientation = _open(encoded, path)
    require_decodable(header, path)
    width, height = header.size
    is_jpeg, factor = encoded[: len(JPEG)].tobytes() == JPEG, reduction(width, height)
    try:
        image = _decode_jpeg(encoded, header, factor) if is_jpeg else to_rgb(header)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders may raise anything for a broken file
        raise ImageError(f"{printable(path)}: is damaged or truncated ({first_line(error)})") from None
    if header.format == "TIFF":  # Pillow has turned these upright
        image = turned(image, INVERSE.get(orientation, orientation))
    return DecodedPhoto(image, width, height) if is_jpeg else DecodedPhoto.whole(image), orientation


def _open(encoded: np.ndarray, path: str | Path) -> tuple[Image.Image, int]:
    """Open a photo with Pillow, which reads only the header; return it with the EXIF orientation."""
    try:
        # Pillow warns about broken EXIF blocks; they are ignored.
        with _opening, warnings.catch_warnings(action="ignore"):
            header = Image.open(io.BytesIO(encoded.data), formats=FORMATS)
            if header.format == "PNG" and "exif" not in header.info:
                return header, 1  # getexif would decode the whole photo
            return header, header.getexif().get(ORIENTATION, 1)
    except Image.DecompressionBombError as error:  # above Pillow's own limit, which is higher
        number = "".join(re.findall(r"\d+", str(error))[:1])
        raise TooLarge(f"{printable(path)}: has {int(number):,} pixels, more than {MAX_PIXELS:,}; scale it down") from None
    except Exception:
        raise ImageError(f"{printable(path)}: {_tiff_kind(encoded) or 'is not a supported image'}") from None


def read_exif(encoded: np.ndarray) -> dict[int, Any]:
    """Return the EXIF entries of a photo by their tags; empty if it has none or they are damaged.

    Args:
        encoded: `[n]` uint8, the bytes of a file that can be decoded.
    """
    try:
        with _opening, warnings.catch_warnings(action="ignore"):
            header = Image.open(io.BytesIO(encoded.data), formats=FORMATS)
            if "exif" not in header.info:  # PNG's getexif would decode the whole photo
                return {}
            exif = header.getexif()
            return {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    except Exception:  # a damaged block may raise anything
        return {}


def _tiff_kind(encoded: np.ndarray) -> str:
    """Describe a TIFF file whose kind of pixels Pillow does not support; return an empty text for any other file."""
    file = io.BytesIO(encoded.data)
    try:
        with _opening, warnings.catch_warnings(action="ignore"):
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        bits = tags[TiffImagePlugin.BITSPERSAMPLE]
        kind = SAMPLES[tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]]
    except Exception:  # a broken file may raise anything
        return ""
    return f"{len(bits)} channel(s) of {bits[0]}-bit {kind} are not supported; save it with 8 bits"


def require_decodable(header: Image.Image, name: str | Path) -> None:
    """Check the header of a photo.

    Args:
        header: the photo; its pixels need not be loaded.
        name: name for the message.

    Raises:
        TooLarge: it has more than MAX_PIXELS.
        ImageError: its pixels have no known range from black to white.
    """
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise TooLarge(f"{printable(name)}: has {width} × {height} pixels, more than {MAX_PIXELS:,}; scale it down")
    if header.mode == "F" or (header.mode == "I" and header.format != "PPM"):
        kind = "floating-point numbers" if header.mode == "F" else "32-bit or signed integers"
        raise ImageError(f"{printable(name)}: pixels are {kind} without a known range; save it with 8 or 16 bits")


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of a Pillow image that passes `require_decodable`, as `[H, W, 3]` uint8 RGB.

    Pillow's decoders may raise any exception.
    """
    image.load()
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip to 255 instead of scaling
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        # Pillow inverts a TIFF in which 0 is white only with 8 bits.
        is_inverted = image.format == "TIFF" and image.getexif().get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        return cv2.cvtColor(255 - grey if is_inverted else grey, cv2.COLOR_GRAY2RGB)
    image.info.pop("transparency", None)  # Pillow would warn about it
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _decode_jpeg(encoded: np.ndarray, header: Image.Image, reduction: int) -> np.ndarray:
    """Decode a JPEG file, reduced by at most `reduction`, and raise if pixels are lost.

    libjpeg fills in missing pixels and only warns. Pillow drops the warning, OpenCV prints it; simplejpeg raises it.

    Raises:
        ValueError: with the message of libjpeg.
    """
    factor = next(each for each in REDUCTIONS if each <= reduction)
    width, height = header.size
    try:
        image = simplejpeg.decode_jpeg(encoded, "RGB", min_width=-(-width // factor), min_height=-(-height // factor))
    except ValueError as error:
        if not HARMLESS.match(str(error)):
            raise
        return to_rgb(header)
    return image[: reduced(height, factor), : reduced(width, factor)]  # without a last pixel that lies mostly outside


def upright(photo: DecodedPhoto, orientation: int) -> DecodedPhoto:
    """Turn a photo, stored with an EXIF orientation from 1 to 8, upright."""
    width, height = (photo.height, photo.width) if orientation in ROTATED else (photo.width, photo.height)
    return DecodedPhoto(turned(photo.pixels, orientation), width, height)


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image `[H, W, 3]`, stored with an EXIF orientation from 1 to 8, upright."""
    across = image.swapaxes(0, 1)
    upright = {
        2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: across, 6: across[:, ::-1], 7: across[::-1, ::-1], 8: across[::-1],
    }  # fmt: skip
    return np.ascontiguousarray(upright.get(orientation, image))


def passed_over(counts: Mapping[str, int]) -> str:
    """Return a message about files of unsupported suffixes, from the number of files of each suffix; empty if none."""
    found = [suffix for suffix in NOT_READ if counts.get(suffix)]
    if not found:
        return ""
    remedy = HEIC_REMEDY if found[0] in HEIC else "convert them to JPEG or PNG"
    return f"{', '.join(f'{counts[suffix]} {suffix}' for suffix in found)} skipped as unsupported; {remedy}"


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write a picture `[H, W, 3]` uint8 RGB in the format of its suffix, or a similar one. Missing folders are created.

    Raises:
        ImageError: the format does not support pictures of that size.
        OSError: the file cannot be written.
    """
    # cv2.imwrite would end the process on a name that is not UTF-8.
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
    r"""Return a file name as printable text, with bytes that are not UTF-8 and control characters written as \x..."""
    return "".join(_escaped(letter) if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in str(name))


def _escaped(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code:02x}"  # os.fsdecode maps bytes to these
