"""YOLO's label files: an object a line, as class, centre and size, as an outline, or as a pose; relative to the photo."""

import codecs
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from data.dataset.annotation import (
    Annotation,
    Damaged,
    DataError,
    PhotoSize,
    Unreachable,
    clipped_annotation,
    turned_box,
    unknown_class,
)

NUM_JUDGED = 64  # bytes by which an encoding is recognised
MAX_SHOWN = 400  # letters of a line that cannot be read
TOLERANCE = 0.01  # how far beyond 0..1 a number may lie: tools round
BEYOND = 0.1  # the same of a box: it may reach two pixels over both edges of a small photo


def is_labels(path: Path) -> bool:
    """Whether a text file has YOLO's labels, by its first line."""
    line = _first_line(path)
    try:
        _parse(line, None)
    except ValueError:
        return False
    return True


def resembles_labels(path: Path) -> bool:
    """Whether a text file may be meant to have YOLO's labels: its first line has a word and four numbers or more. What is wrong
    with them is told, file and line, by those who read them."""
    words = re.split(r"[\s,;|]+", _first_line(path).strip())
    try:
        return len([float(text) for text in words[1:]]) >= 4
    except ValueError:
        return False


def _first_line(path: Path) -> str:
    """The first line of a text file that is not blank; empty where there is none."""
    return next((line for line in read_text(path, strict=False).splitlines() if line.strip()), "")


def read_text(path: Path, strict: bool = True) -> str:
    """The content of a text file; empty where it cannot be read, and with all that can be made of it where it is not in UTF-8,
    unless that is to be told.

    Raises:
        Damaged: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        if not strict:
            return ""
        raise Unreachable(f"{path}: cannot be read: {error.strerror}") from None
    head = content[:NUM_JUDGED]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or head.count(0) > len(head) / 4:  # of UTF-16 half of them
        if not strict:
            return content.decode("utf-16", errors="replace").replace("\0", "")
        raise Damaged(f"{path}: line 1: is text in UTF-16, or no text at all; save it as UTF-8")
    try:
        return content.decode("utf-8-sig", errors="strict" if strict else "replace")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise Damaged(f"{path}: line {row}: is not text in UTF-8 ({error.reason}); save it as UTF-8") from None


def numbers_in(path: str) -> list[int]:
    """The numbers of the classes in a file of labels; none where it cannot be read."""
    return [number for _, number in numbered_lines(Path(path))]


def numbered_lines(path: Path) -> Iterator[tuple[int, int]]:
    """Each line of a file of labels, counted from 1, and the number of its class; not those that cannot be read."""
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
) -> Annotation:
    """The objects of one photo. Outlines (more than four numbers) become the boxes around them; of poses the box is taken.

    Args:
        path: the text file; None for a photo without objects.
        names: of the classes, by number.
        labels: label of each class name.
        ignore_others: leave out objects of other classes instead of refusing them.
        keypoints: how many keypoints each object has, and of how many numbers; None where outlines may stand.
        photo: what the photo measures.

    Raises:
        DataError: with one line for each fault in the file.
    """
    lines = read_text(path).splitlines() if path else []
    # YOLO's tools turn photos upright before anything else.
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
            faults.append(f"{where}: class {label} has no name; there are: {known}. Name it as well, or mend the number")
        elif names[label] in labels:
            x1, y1, x2, y2 = box
            boxes.append((x1 * width, y1 * height, x2 * width, y2 * height))
            numbers.append(labels[names[label]])
            rows.append(number)
        elif not ignore_others:
            faults.append(f"{where}: {unknown_class(names[label], labels)}")
    if faults:
        raise DataError("\n".join(faults))
    return clipped_annotation(
        width, height, boxes, numbers, [False] * len(numbers), lambda index: f"{path}: line {rows[index]}"
    )


def _parse(line: str, keypoints: tuple[int, int] | None) -> tuple[int, tuple[float, float, float, float]]:
    """Class and corners, relative to the photo, of one line.

    Raises:
        ValueError: it is not a class and four numbers, an outline's or a pose's, in 0..1.
    """
    first, *rest = line.split()
    shown = line.strip() if len(line) < MAX_SHOWN else f"{line[:MAX_SHOWN]}..."
    try:
        label, values = int(float(first)), [float(text) for text in rest]
    except (ValueError, OverflowError):
        remedy = "write the class as its number, and spaces between them"
        raise ValueError(f"expected numbers, got {shown!r}; {remedy}") from None
    if len(values) == 4 + math.prod(keypoints) if keypoints else _is_pose(values):
        values = values[:4]
    if label < 0 or label != float(first) or len(values) < 4 or (len(values) > 4 and (keypoints or len(values) % 2)):
        wanted = f"four numbers and {keypoints[0]} keypoints" if keypoints else "four numbers (centre, size)"
        if len(values) == 5 and not keypoints and not _is_within(values[4]):
            raise ValueError(turned_box(rest[4]))
        remedy = "; if the last number is a confidence, export without confidences; if an angle, export upright boxes"
        remedy = remedy if len(values) == 5 else ""
        raise ValueError(f"expected a class and {wanted}, got {shown!r}{remedy}")
    if not all(_is_within(value, BEYOND if len(values) == 4 else TOLERANCE) for value in values):
        raise ValueError(f"expected numbers from 0 to 1, relative to the photo, got {shown!r}")
    if len(values) == 4:
        return label, _edges(*values)
    return label, (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))


def _is_within(value: float, beyond: float = TOLERANCE) -> bool:
    return math.isfinite(value) and -beyond <= value <= 1 + beyond


def _edges(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _is_pose(values: Sequence[float]) -> bool:
    """Whether numbers are a box and two keypoints or more, each with its visibility, 0, 1 or 2.

    So may be those of an outline that runs along edges of the photo. But an outline has an even number of them, none above 1;
    and read as a pose it hardly ever has a box with an area within the photo: where it ends with the point that it begins with,
    the centre of that box would be on an edge.

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
        f"may be a pose or an outline, as every third number is 0 or 1; if it is a pose, write kpt_shape: "
        f"[{len(values) // 3 - 1}, 3] into data.yaml, beside names; if an outline, begin it with another of its points"
    )
