"""The objects of one photo, as arrays, and one VOC annotation file."""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class DataError(ValueError):
    """Data that cannot be used; the message has one line for each fault: file, object, what to do."""

    def __init__(self, message: str) -> None:
        # What a loader's worker raises arrives here again, with the worker's traceback around it.
        super().__init__(message.rsplit("DataError: ", 1)[-1].strip())


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
    num_clipped: int  # boxes that reached beyond the photo
    num_empty: int  # boxes without area, dropped


def parse_annotation(
    path: Path, classes: Mapping[str, int], ignore_others: bool = False, photo: PhotoSize | None = None
) -> Annotation:
    """Reads a VOC annotation.

    VOC counts pixels from 1 and includes both corners: the edges of a box are xmin - 1, ymin - 1, xmax, ymax. Corners
    may be floats, `difficult` may be missing, and what nests inside an object (`part`) is no object. Boxes are clipped
    to the photo, those without area dropped, and both counted.

    Args:
        path: the XML file.
        classes: label of each class name.
        ignore_others: leave out objects of other classes instead of refusing them.
        photo: what the photo measures: has to agree with the file, and fills in where that has no size.

    Raises:
        DataError: with one line for each fault in the file.
    """
    root = _read(path)
    faults: list[str] = []
    width, height = agreed_size(_size(root), photo, str(path), "<size>", faults)
    boxes, labels, difficult = [], [], []
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{path}: object {number}"
        name = (item.findtext("name") or "").strip()
        if not name:
            faults.append(f"{where}: has no name; add <name>")
            continue
        if name not in classes:
            if not ignore_others:
                faults.append(f"{where}: {unknown_class(name, classes)}")
            continue
        try:
            box = _box(item)
        except ValueError as error:
            faults.append(f"{where} ({name}): {error}")
            continue
        boxes.append(box)
        labels.append(classes[name])
        difficult.append((item.findtext("difficult") or "0").strip() not in ("0", ""))
    if faults:
        raise DataError("\n".join(faults))
    return clipped_annotation(width, height, boxes, labels, difficult)


def agreed_size(said: tuple[int, int], photo: PhotoSize | None, where: str, entry: str, faults: list[str]) -> tuple[int, int]:
    """The size that a file gives of a photo, or the photo's own where it gives none.

    Args:
        said: width and height by the file, 0 where it does not say.
        photo: what the photo measures, if that is known.
        where: the place in the file.
        entry: what gives the size there.
        faults: told if the two differ.
    """
    if photo and not said[0]:
        return photo[:2]
    if photo and said not in (photo[:2], photo[2:]):
        theirs = f"{photo.width} × {photo.height}"
        faults.append(f"{where}: says {said[0]} × {said[1]} pixels, the photo has {theirs}; mend {entry}")
    return said


def clipped_annotation(
    width: int,
    height: int,
    boxes: Sequence[tuple[float, float, float, float]],
    labels: Sequence[int],
    difficult: Sequence[bool],
) -> Annotation:
    """An annotation with its boxes (pixel edges from 0) clipped to the photo, and those without area dropped."""
    clipped, num_clipped = _clip(np.array(boxes, np.float32).reshape(-1, 4), width, height)
    whole = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    return Annotation(
        width, height, clipped[whole], np.array(labels, np.int64)[whole], np.array(difficult, bool)[whole],
        num_clipped, int((~whole).sum()),
    )  # fmt: skip


def _read(path: Path) -> ElementTree.Element:
    text = b""
    try:
        text = path.read_bytes()
        root = ElementTree.fromstring(text)
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; add it, or take the photo out of the split") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        reason = "it is empty" if not text else error
        raise DataError(f"{path}: is not valid XML ({reason}); mend or remove it") from None
    if b"<!ENTITY" in text:
        raise DataError(f"{path}: declares XML entities, which no annotation needs; remove the declaration")
    if root.tag != "annotation":
        raise DataError(f"{path}: expected <annotation> as the outermost element, got <{root.tag}>")
    return root


def _size(root: ElementTree.Element) -> tuple[int, int]:
    """Width and height; 0, 0 where they are missing or make no sense, as some tools write them."""
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return 0, 0
    return (width, height) if width > 0 and height > 0 else (0, 0)


def unknown_class(name: str, classes: Mapping[str, int]) -> str:
    by_lower = {known.lower(): known for known in classes}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[close[0]]!r}?" if close else f"known are {', '.join(classes)}."
    return f"unknown class {name!r}; {hint} Mend the name, list it in data.classes, or set data.other_classes: ignore"


def _box(item: ElementTree.Element) -> tuple[float, float, float, float]:
    """The edges of one object's box.

    Raises:
        ValueError: it has none, or its corners are no numbers or the wrong way round.
    """
    box = item.find("bndbox")
    if box is None:
        raise ValueError("has no box; add <bndbox>")
    corners = {}
    for name in CORNERS:
        text = box.findtext(name)
        try:
            corners[name] = float(text or "")
        except ValueError:
            raise ValueError(f"{name} is {'missing' if text is None else f'no number: {text!r}'}") from None
        if not math.isfinite(corners[name]):
            raise ValueError(f"{name} is no finite number: {text!r}")
    xmin, ymin, xmax, ymax = (corners[name] for name in CORNERS)
    if xmax < xmin or ymax < ymin:
        raise ValueError(f"the box is inverted: ({xmin:g}, {ymin:g}) to ({xmax:g}, {ymax:g}); swap its corners")
    # Equal corners are a box of one pixel by VOC's rule, but in practice always a slip of the hand: kept as no area.
    left, top = xmin - (xmax > xmin), ymin - (ymax > ymin)
    return left, top, xmax, ymax


def _clip(boxes: np.ndarray, width: int, height: int) -> tuple[np.ndarray, int]:
    """Boxes clipped to the photo (where its size is known) and the number of those that a pixel or more was cut off."""
    if not width:
        return np.maximum(boxes, 0), 0
    clipped = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    return clipped, int((np.abs(clipped - boxes) > 1).any(axis=1).sum())
