"""YOLO's label files: an object per line, as class and box, outline or pose, relative to the photo."""

import codecs
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from data.dataset.class_names import unknown_class
from data.dataset.errors import DamagedError, DataError, UnreachableError
from data.dataset.photo_objects import PhotoObjects, PhotoSize, clip_objects, rotated_box_fault

NUM_HEAD = 64  # bytes to look at to recognise an encoding
MAX_SHOWN = 400  # characters of an unreadable line in a message
TOLERANCE = 0.01  # numbers may lie this far outside 0..1, since tools round
BOX_TOLERANCE = 0.1  # numbers of a box: it may reach two pixels over both edges of a small photo


def is_labels(path: Path) -> bool:
    """Return whether a text file has YOLO labels, by its first line."""
    line = _first_line(path)
    try:
        _parse(line, None)
    except ValueError:
        return False
    return True


def resembles_labels(path: Path) -> bool:
    """Return whether a text file seems to have faulty YOLO labels: its first line has a word and at least four numbers.

    Reading it reports the faults, with file and line.
    """
    words = re.split(r"[\s,;|]+", _first_line(path).strip())
    try:
        return len([float(text) for text in words[1:]]) >= 4
    except ValueError:
        return False


def _first_line(path: Path) -> str:
    """Return the first line of a text file that is not blank; empty if there is none."""
    return next((line for line in read_text(path, strict=False).splitlines() if line.strip()), "")


def read_text(path: Path, strict: bool = True) -> str:
    """Return the content of a text file.

    Args:
        path: the file.
        strict: raise an error if it cannot be read or is not UTF-8; otherwise return as much as can be decoded.

    Raises:
        DamagedError: `strict`, and it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        if not strict:
            return ""
        raise UnreachableError(f"{path}: cannot be read: {error.strerror}") from None
    head = content[:NUM_HEAD]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or head.count(0) > len(head) / 4:  # in UTF-16, half of them
        if not strict:
            return content.decode("utf-16", errors="replace").replace("\0", "")
        raise DamagedError(f"{path}: line 1: is UTF-16 or not text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig", errors="strict" if strict else "replace")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise DamagedError(f"{path}: line {row}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def class_numbers_in(path: str) -> list[int]:
    """Return the class numbers in a label file; empty if it cannot be read."""
    return [number for _, number in numbered_lines(Path(path))]


def numbered_lines(path: Path) -> Iterator[tuple[int, int]]:
    """Yield each line number of a label file, from 1, with its class number. Unreadable lines are skipped."""
    for row, line in enumerate(read_text(path, strict=False).splitlines(), start=1):
        with suppress(IndexError, ValueError, OverflowError):
            yield row, int(float(line.split()[0]))


def read_labels(
    path: Path | None,
    names: Mapping[int, str],
    labels: Mapping[str, int],
    ignore_others: bool,
    keypoints: tuple[int, int] | None,
    photo: PhotoSize | None,
) -> PhotoObjects:
    """Read the objects of one photo. An outline becomes the box around it; of a pose, only the box is used.

    Args:
        path: the label file; None for a photo without objects.
        names: class names by number.
        labels: label of each class name.
        ignore_others: leave out objects of other classes instead of refusing them.
        keypoints: number of keypoints per object, and of values per keypoint; None if the file may have outlines.
        photo: the photo's size.

    Raises:
        DataError: one line per fault in the file.
    """
    lines = read_text(path).splitlines() if path else []
    # YOLO's tools rotate photos upright first.
    width, height = (photo.upright_width, photo.upright_height) if photo else (0, 0)
    faults: list[str] = []
    boxes, numbers, rows = [], [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            label, box = _parse(line, keypoints)
        except ValueError as error:
            faults.append(f"{where}: {error}")
            continue
        if label not in names:
            known = ", ".join(f"{number} {name}" for number, name in names.items())
            faults.append(f"{where}: class {label} has no name; known: {known}. Add its name, or fix the number")
        elif names[label] in labels:
            x1, y1, x2, y2 = box
            boxes.append((x1 * width, y1 * height, x2 * width, y2 * height))
            numbers.append(labels[names[label]])
            rows.append(number)
        elif not ignore_others:
            faults.append(f"{where}: {unknown_class(names[label], labels)}")
    if faults:
        raise DataError("\n".join(faults))
    return clip_objects(width, height, boxes, numbers, [False] * len(numbers), lambda index: f"{path}: line {rows[index]}")


def _parse(line: str, keypoints: tuple[int, int] | None) -> tuple[int, tuple[float, float, float, float]]:
    """Return the class number and relative corners in one line.

    Raises:
        ValueError: it is not a class number followed by a box, an outline or a pose in 0..1.
    """
    first, *rest = line.split()
    shown = line.strip() if len(line) < MAX_SHOWN else f"{line[:MAX_SHOWN]}..."
    try:
        label, values = int(float(first)), [float(text) for text in rest]
    except (ValueError, OverflowError):
        remedy = "write the class as a number, with spaces between numbers"
        raise ValueError(f"expected numbers, got {shown!r}; {remedy}") from None
    if len(values) == 4 + math.prod(keypoints) if keypoints else _is_pose(values):
        values = values[:4]
    if label < 0 or label != float(first) or len(values) < 4 or (len(values) > 4 and (keypoints or len(values) % 2)):
        wanted = f"four numbers and {keypoints[0]} keypoints" if keypoints else "four numbers (centre, size)"
        if len(values) == 5 and not keypoints and not _is_within(values[4]):
            raise ValueError(rotated_box_fault(rest[4]))
        remedy = "; if the last number is a confidence, export without confidences; if an angle, export upright boxes"
        remedy = remedy if len(values) == 5 else ""
        raise ValueError(f"expected a class and {wanted}, got {shown!r}{remedy}")
    if not all(_is_within(value, BOX_TOLERANCE if len(values) == 4 else TOLERANCE) for value in values):
        raise ValueError(f"expected numbers from 0 to 1 (relative to the photo), got {shown!r}")
    if len(values) == 4:
        return label, _edges(*values)
    return label, (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))


def _is_within(value: float, beyond: float = TOLERANCE) -> bool:
    return math.isfinite(value) and -beyond <= value <= 1 + beyond


def _edges(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _is_pose(values: Sequence[float]) -> bool:
    """Return whether numbers are a box and at least two keypoints, each with visibility 0, 1 or 2.

    An outline along the photo's edges can look the same. But an outline has an even count of numbers, none above 1. And its
    first numbers, read as a box, hardly ever lie within the photo: if it ends at its first point, that box is centred on an
    edge.

    Raises:
        ValueError: they may be either.
    """
    if len(values) < 10 or len(values) % 3 != 1 or not set(values[6::3]) <= {0, 1, 2}:
        return False
    if len(values) % 2 or 2 in values[6::3]:
        return True
    if not (min(values[2:4]) > 0 and all(map(_is_within, _edges(*values[:4])))):
        return False
    raise ValueError(
        f"may be a pose or an outline, since every third number is 0 or 1; for a pose, add kpt_shape: "
        f"[{len(values) // 3 - 1}, 3] to data.yaml, beside names; for an outline, start at another of its points"
    )
