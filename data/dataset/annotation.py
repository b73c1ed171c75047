"""The objects of one photo, as arrays: what the readers of all layouts make."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ssd.system.errors import UserError

RARE = 20  # times fewer objects: so rare a class may be another one misspelt

MIN_SIDE = 0.5  # pixels of a box: less is no object that anybody drew
MAX_SIDE = 2**31  # pixels of a photo: more make no sense
ENDLESS = re.compile(r"[^\s/\\]{256,}")  # no file has so long a name


class DataError(UserError):
    """Data that cannot be used; the message has one line for each fault: file, object, what to do. Of a number of thousands of
    digits it has both ends."""

    def __init__(self, message: str) -> None:
        # What a loader's worker raises arrives here again, with the worker's traceback around it.
        said = message.rsplit("DataError: ", 1)[-1].strip()
        super().__init__(ENDLESS.sub(lambda found: f"{found[0][:20]}...{found[0][-20:]}", said))


class Damaged(DataError):
    """A photo or an annotation file that cannot be read as a whole: what `data.damaged: skip` leaves out."""


class Unreachable(Damaged):
    """One that the system does not hand out. That may pass, so it is never remembered."""


class PhotoSize(NamedTuple):
    """Pixels of a photo as it is stored, and as its EXIF orientation (where it has one) wants it shown."""

    width: int
    height: int
    upright_width: int
    upright_height: int


class Annotation(NamedTuple):
    """The objects of one photo."""

    width: int  # pixels; 0 where the file does not say
    height: int
    boxes: np.ndarray  # [m, 4] float32 pixels: edges (x1, y1, x2, y2) counted from 0, so that x2 - x1 is the width
    labels: np.ndarray  # [m] int64
    difficult: np.ndarray  # [m] bool
    truncated: np.ndarray  # [m] int8: 1 where the object reaches beyond its box, as VOC tells it, 0 where not; -1: not told
    clipped: tuple[str, ...]  # the places in its file of boxes that reached beyond the photo
    empty: tuple[str, ...]  # and of boxes without area, which were dropped
    tiny: tuple[str, ...]  # and of those far smaller than a pixel, which were dropped
    repeated: tuple[str, ...]  # and of those that repeat another of their class, which were dropped
    written: np.ndarray  # [k, 4] float32 pixels: edges of all boxes as they were read, also of those that were dropped


def agreed_size(said: tuple[int, int], photo: PhotoSize | None, where: str, entry: str, faults: list[str]) -> tuple[int, int]:
    """The size that a file gives of a photo, upright or as it is stored; where it gives none, the photo's own, upright.

    Args:
        said: width and height by the file, 0 where it does not say.
        photo: what the photo measures, if that is known.
        where: the place in the file.
        entry: what gives the size there.
        faults: told if the two differ.
    """
    if photo and not said[0]:
        return photo[2:]
    if photo and said not in (photo[:2], photo[2:]):
        theirs = f"{photo.width} × {photo.height}"
        if photo[2:] != photo[:2]:
            theirs += f" ({photo.upright_width} × {photo.upright_height} turned upright, as its EXIF orientation says)"
        remedy = f"use the photo that the boxes were drawn on, or, if they fit this one, mend {entry}"
        faults.append(f"{where}: says {said[0]} × {said[1]} pixels, the photo has {theirs}; {remedy}")
    return said


def clipped_annotation(
    width: int,
    height: int,
    boxes: Sequence[tuple[float, float, float, float]] | np.ndarray,
    labels: Sequence[int],
    difficult: Sequence[bool],
    where: Callable[[int], str],
    truncated: Sequence[int] | None = None,
) -> Annotation:
    """An annotation with its boxes (pixel edges from 0) clipped to the photo; those without area or far smaller than a pixel,
    and those that stand twice with the same class, as where annotations were merged, are dropped.

    Args:
        width: of the photo, in pixels; 0 where it is not known.
        height: likewise.
        boxes: of m objects.
        labels: likewise.
        difficult: likewise.
        where: tells the place in the file of one of them.
        truncated: as an `Annotation` has it; None where the layout does not tell.
    """
    edges = np.clip(np.array(boxes, np.float64), -MAX_SIDE, MAX_SIDE).astype(np.float32).reshape(-1, 4)
    kinds = np.array(labels, np.int64)
    clipped, is_clipped = _clip(edges, width, height)
    shorter = (clipped[:, 2:] - clipped[:, :2]).min(axis=1, initial=np.inf)
    whole = shorter >= MIN_SIDE
    kept = whole & _is_first(edges, kinds)
    told = (is_clipped & kept, shorter <= 0, (shorter > 0) & ~whole, whole & ~kept)
    clipped_at, empty_at, tiny_at, repeated_at = (tuple(map(where, np.flatnonzero(chosen).tolist())) for chosen in told)
    return Annotation(
        width, height, clipped[kept], kinds[kept], np.array(difficult, bool)[kept],
        np.full(len(kept), -1, np.int8)[kept] if truncated is None else np.array(truncated, np.int8)[kept],
        clipped_at, empty_at, tiny_at, repeated_at, edges,
    )  # fmt: skip


def is_turned(angle: object) -> bool:
    """Whether a box with this angle (degrees, as number or text) is another one than without it, by more than rounding."""
    try:
        rest = float(str(angle)) % 180
    except ValueError:
        return False
    return not min(rest, 180 - rest) < 0.5


def turned_box(angle: object) -> str:
    """Says that a box with an angle cannot be used."""
    return f"has a turned box (angle {angle}), and SSD learns upright ones; export boxes without an angle"


def unknown_class(name: str, classes: Mapping[str, int]) -> str:
    by_lower = {known.lower(): known for known in classes}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[close[0]]!r}?" if close else f"known are {', '.join(classes)}."
    return f"unknown class {name!r}; {hint} Mend the name, list it in data.classes, or set data.other_classes: ignore"


def similar_classes(counts: Mapping[str, int]) -> list[str]:
    """Warnings of class names that may be one class written in two ways: they differ only in case, spaces or signs; or one is
    rare and differs from a common one by what looks like a typo.

    Args:
        counts: objects of each class.
    """
    warnings, spelt = [], {}
    for name in sorted(counts, key=lambda name: -counts[name]):
        plain = "".join(filter(str.isalnum, name.casefold())) or name
        if plain in spelt:
            warnings.append(_one_class(spelt[plain], name, counts, "differ only in case, spaces or signs"))
            continue
        common = [
            other
            for other in spelt
            if counts[name] * RARE < counts[spelt[other]] and _without_digits(other) != _without_digits(plain)
        ]
        close = difflib.get_close_matches(plain, common, n=1, cutoff=0.8)
        if close:
            warnings.append(_one_class(spelt[close[0]], name, counts, "are spelt much alike"))
        spelt[plain] = name
    return warnings


def _one_class(one: str, other: str, counts: Mapping[str, int], what: str) -> str:
    return (
        f"the classes {one!r} ({counts[one]} objects) and {other!r} ({counts[other]}) {what}; if they are one, "
        "write it in one way in the annotations"
    )


def _without_digits(name: str) -> str:
    """Names that differ in numbers only, as van1 and van2, are meant to differ."""
    return "".join(letter for letter in name if not letter.isdigit())


def _clip(boxes: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to the photo (where its size is known), and which of them more than a pixel was cut off."""
    if not width:
        return np.maximum(boxes, 0), np.zeros(len(boxes), bool)
    clipped = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    return clipped, np.abs(clipped - boxes).max(axis=1, initial=0) > 1


def _is_first(boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which objects [m] are the first ones of their box and class."""
    rows = [(*box, label) for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)]
    seen: dict[tuple[float, ...], int] = {}  # for a few rows a tenth of the time of np.unique
    return np.array([seen.setdefault(row, i) == i for i, row in enumerate(rows)], bool)
