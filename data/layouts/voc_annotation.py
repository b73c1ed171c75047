"""VOC's annotations: an XML file per photo, with boxes in inclusive pixels counted from 1."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from data.dataset.class_names import unknown_class
from data.dataset.errors import DamagedError, DataError, UnreachableError
from data.dataset.names import nfc
from data.dataset.photo_objects import (
    MAX_SIDE,
    PhotoObjects,
    PhotoSize,
    agreed_size,
    clip_objects,
    is_rotated,
    rotated_box_fault,
)
from ssd.boxes import voc_to_edges

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LARGE, MAX_DEPTH = 50_000, 50  # bytes from which nesting is checked, and the deepest; annotations nest four elements
YES, NO = ("1", "true", "yes"), ("0", "false", "no")
XML_ERRORS = (ElementTree.ParseError, ValueError, LookupError)  # the latter two for a wrong encoding


def is_annotation(path: Path) -> bool:
    """Return whether an XML file is a VOC annotation, by its root element."""
    try:
        with path.open("rb") as file:
            for _, element in ElementTree.iterparse(file, ("start",)):
                return element.tag == "annotation"
    except (OSError, *XML_ERRORS):
        pass
    return False


def root_of(path: Path) -> ElementTree.Element | None:
    """Return the root element of an XML file; None if it cannot be read."""
    try:
        return _parse(path.read_bytes())
    except (OSError, *XML_ERRORS):
        return None


def _parse(text: bytes) -> ElementTree.Element:
    """Return the root element of an XML text.

    Raises:
        ElementTree.ParseError, ValueError, LookupError: the text is not valid XML, or nested too deep.
    """
    if len(text) > LARGE:  # deep nesting would take seconds to parse
        _require_shallow(text)
    return ElementTree.fromstring(text)


def _require_shallow(text: bytes) -> None:
    """Raise ValueError if elements are nested too deep."""
    above: list[str] = []

    def enter(name: str, _: object) -> None:
        above.append(name)
        if len(above) > MAX_DEPTH:
            raise ValueError("nested too deep")

    parser = expat.ParserCreate()
    parser.StartElementHandler = enter
    parser.EndElementHandler = lambda _: above.pop()
    with suppress(expat.ExpatError):  # ElementTree reports it
        parser.Parse(text, True)


def class_names_in(path: str) -> list[str]:
    """Return the class names of all objects in an annotation file; empty if it cannot be read."""
    root = root_of(Path(path))
    items = [] if root is None else root.findall("object")
    return [name for item in items if (name := _class_name(item))]


def parse_annotation(
    path: Path, classes: Mapping[str, int], ignore_others: bool = False, photo: PhotoSize | None = None
) -> PhotoObjects:
    """Read a VOC annotation.

    Corners may be floats, and `difficult` may be missing. Parts of an object (`part`) are not objects.

    Args:
        path: the XML file.
        classes: label of each class name.
        ignore_others: leave out objects of other classes instead of refusing them.
        photo: the photo's size. It must agree with the file's, and replaces a missing one.

    Raises:
        DataError: one line per fault in the file.
    """
    root = _read(path)
    faults: list[str] = []
    width, height = agreed_size(_size(root), photo, str(path), "<size>", faults)
    boxes, labels, difficult, truncated, numbers = [], [], [], [], []
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{path}: object {number}"
        name = _class_name(item)
        if not name:
            faults.append(f"{where}: has no name; add <name>")
            continue
        if name not in classes:
            if not ignore_others:
                faults.append(f"{where}: {unknown_class(name, classes)}")
            continue
        try:
            box = _box(item, width, height)
        except ValueError as error:
            faults.append(f"{where} ({name}): {error}")
            continue
        boxes.append(box)
        labels.append(classes[name])
        numbers.append(number)
        difficult.append(_flag(item, "difficult") == 1)
        truncated.append(_flag(item, "truncated"))
    if faults:
        raise DataError("\n".join(faults))
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    # By VOC's rule equal corners are a box of one pixel. In practice they are a mistake, so the box keeps no area.
    has_no_area = (corners[:, :2] == corners[:, 2:]).any(axis=1, keepdims=True)
    edges = np.where(has_no_area, corners, voc_to_edges(corners))
    names = list(classes)

    def place(index: int) -> str:
        return f"{path}: object {numbers[index]} ({names[labels[index]]})"

    return clip_objects(width, height, edges, labels, difficult, place, truncated)


def _class_name(item: ElementTree.Element) -> str:
    return nfc((item.findtext("name") or "").strip())


def _flag(item: ElementTree.Element, name: str) -> int:
    """Return 1 for yes, 0 for no, -1 if the flag is missing or neither (Unspecified)."""
    text = (item.findtext(name) or "").strip().lower()
    return 1 if text in YES else 0 if text in NO else -1


def _read(path: Path) -> ElementTree.Element:
    text = b""
    try:
        text = path.read_bytes()
        root = _parse(text)
    except FileNotFoundError:
        raise DamagedError(f"{path}: is missing; add it, or remove the photo from the split") from None
    except OSError as error:
        raise UnreachableError(f"{path}: cannot be read: {error.strerror}") from None
    except XML_ERRORS as error:
        reason = "it is empty" if not text else error
        raise DamagedError(f"{path}: is not valid XML ({reason}); fix or remove it") from None
    if b"<!ENTITY" in text:
        raise DataError(f"{path}: declares XML entities, which no annotation needs; remove the declaration")
    if root.tag != "annotation":
        raise DamagedError(f"{path}: expected <annotation> as the root element, got <{root.tag}>")
    return root


def _size(root: ElementTree.Element) -> tuple[int, int]:
    """Return width and height; 0, 0 if they are missing or nonsense, which some tools write."""
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return 0, 0
    return (width, height) if 0 < width < MAX_SIDE and 0 < height < MAX_SIDE else (0, 0)


def _angle(item: ElementTree.Element) -> str:
    """Return the angle of a rotated box; empty for an upright one.

    roLabelImg writes radians; CVAT writes degrees beside the box before rotation.
    """
    if item.find("robndbox") is not None:
        return item.findtext("robndbox/angle") or "missing"
    for text in (item.findtext("angle"), item.findtext("bndbox/angle")):
        if text and text.strip("0. \n\t-+"):
            return text.strip()
    for each in item.findall("attributes/attribute"):
        value = (each.findtext("value") or "").strip()
        if each.findtext("name") == "rotation" and is_rotated(value):
            return value
    return ""


def _box(item: ElementTree.Element, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the corners of one object's box, in inclusive pixels counted from 1. `width` and `height` are the photo's.

    Raises:
        ValueError: the box is missing, rotated, not made of numbers, or inverted.
    """
    angle = _angle(item)
    if angle:
        raise ValueError(rotated_box_fault(angle))
    box = item.find("bndbox")
    if box is None:
        raise ValueError("has no box; add <bndbox>")
    corners = {}
    for name in CORNERS:
        text = box.findtext(name)
        try:
            corners[name] = float(text or "")
        except ValueError:
            raise ValueError(f"{name} is {'missing' if text is None else f'not a number: {text!r}'}") from None
        if not math.isfinite(corners[name]):
            raise ValueError(f"{name} is not a finite number: {text!r}")
    xmin, ymin, xmax, ymax = (corners[name] for name in CORNERS)
    if xmax < xmin or ymax < ymin:
        is_size = min(xmin, ymin) >= 0 < min(xmax, ymax) and xmin + xmax / 2 <= width + 1 and ymin + ymax / 2 <= height + 1
        other = ", or, if the last two are width and height, write its right and bottom edges" if is_size else ""
        raise ValueError(f"the box is inverted: ({xmin:g}, {ymin:g}) to ({xmax:g}, {ymax:g}); swap its corners{other}")
    return xmin, ymin, xmax, ymax
