"""VOC's annotations: an XML file a photo, with its objects as inclusive pixels counted from 1."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from data.dataset.annotation import (
    MAX_SIDE,
    Annotation,
    Damaged,
    DataError,
    PhotoSize,
    Unreachable,
    agreed_size,
    clipped_annotation,
    is_turned,
    turned_box,
    unknown_class,
)
from data.dataset.listing import composed
from ssd.boxes import voc_to_edges

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LARGE, MAX_DEPTH = 50_000, 50  # bytes of a file, and elements within each other: an annotation has four
YES, NO = ("1", "true", "yes"), ("0", "false", "no")
NO_XML = (ElementTree.ParseError, ValueError, LookupError)  # raised of it; the latter two where its encoding is wrong


def is_annotation(path: Path) -> bool:
    """Whether an XML file is a VOC annotation, by its outermost element."""
    try:
        with path.open("rb") as file:
            for _, element in ElementTree.iterparse(file, ("start",)):
                return element.tag == "annotation"
    except (OSError, *NO_XML):
        pass
    return False


def root_of(path: Path) -> ElementTree.Element | None:
    """The outermost element of an XML file; None where it cannot be read."""
    try:
        return _parsed(path.read_bytes())
    except (OSError, *NO_XML):
        return None


def _parsed(text: bytes) -> ElementTree.Element:
    """The outermost element of an XML text. A large one may be nested so deep that to build its elements takes seconds.

    Raises:
        ElementTree.ParseError, ValueError, LookupError: it is not valid, or nested too deep.
    """
    if len(text) > LARGE:
        _require_shallow(text)
    return ElementTree.fromstring(text)


def _require_shallow(text: bytes) -> None:
    """
    Raises:
        ValueError: its elements are nested too deep.
    """
    above: list[str] = []

    def enter(name: str, _: object) -> None:
        above.append(name)
        if len(above) > MAX_DEPTH:
            raise ValueError("nested too deep")

    parser = expat.ParserCreate()
    parser.StartElementHandler = enter
    parser.EndElementHandler = lambda _: above.pop()
    with suppress(expat.ExpatError):  # which those who build the elements tell
        parser.Parse(text, True)


def names_in(path: str) -> list[str]:
    """The names of the objects in an annotation file; none where it cannot be read."""
    root = root_of(Path(path))
    items = [] if root is None else root.findall("object")
    return [name for item in items if (name := _name(item))]


def parse_annotation(
    path: Path, classes: Mapping[str, int], ignore_others: bool = False, photo: PhotoSize | None = None
) -> Annotation:
    """Reads a VOC annotation.

    Corners may be floats, `difficult` may be missing, and what nests inside an object (`part`) is no object. Boxes are
    clipped to the photo, those without area dropped, and both counted.

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
    boxes, labels, difficult, truncated, numbers = [], [], [], [], []
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{path}: object {number}"
        name = _name(item)
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
    # Equal corners are a box of one pixel by VOC's rule, but in practice always a mistake: kept without area.
    has_no_area = (corners[:, :2] == corners[:, 2:]).any(axis=1, keepdims=True)
    edges = np.where(has_no_area, corners, voc_to_edges(corners))
    names = list(classes)

    def place(index: int) -> str:
        return f"{path}: object {numbers[index]} ({names[labels[index]]})"

    return clipped_annotation(width, height, edges, labels, difficult, place, truncated)


def _name(item: ElementTree.Element) -> str:
    return composed((item.findtext("name") or "").strip())


def _flag(item: ElementTree.Element, name: str) -> int:
    """1 for yes, 0 for no, -1 where it is missing, or says neither as in Unspecified."""
    text = (item.findtext(name) or "").strip().lower()
    return 1 if text in YES else 0 if text in NO else -1


def _read(path: Path) -> ElementTree.Element:
    text = b""
    try:
        text = path.read_bytes()
        root = _parsed(text)
    except FileNotFoundError:
        raise Damaged(f"{path}: is missing; add it, or take the photo out of the split") from None
    except OSError as error:
        raise Unreachable(f"{path}: cannot be read: {error.strerror}") from None
    except NO_XML as error:
        reason = "it is empty" if not text else error
        raise Damaged(f"{path}: is not valid XML ({reason}); mend or remove it") from None
    if b"<!ENTITY" in text:
        raise DataError(f"{path}: declares XML entities, which no annotation needs; remove the declaration")
    if root.tag != "annotation":
        raise Damaged(f"{path}: expected <annotation> as the outermost element, got <{root.tag}>")
    return root


def _size(root: ElementTree.Element) -> tuple[int, int]:
    """Width and height; 0, 0 where they are missing or make no sense, as some tools write them."""
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return 0, 0
    return (width, height) if 0 < width < MAX_SIDE and 0 < height < MAX_SIDE else (0, 0)


def _angle(item: ElementTree.Element) -> str:
    """The angle of a turned box, as roLabelImg (radians) and CVAT (degrees, beside the box before it was turned) write it;
    empty of an upright one."""
    if item.find("robndbox") is not None:
        return item.findtext("robndbox/angle") or "not told"
    for text in (item.findtext("angle"), item.findtext("bndbox/angle")):
        if text and text.strip("0. \n\t-+"):
            return text.strip()
    for each in item.findall("attributes/attribute"):
        value = (each.findtext("value") or "").strip()
        if each.findtext("name") == "rotation" and is_turned(value):
            return value
    return ""


def _box(item: ElementTree.Element, width: int, height: int) -> tuple[float, float, float, float]:
    """The corners of one object's box in a photo of that size, inclusive pixels counted from 1.

    Raises:
        ValueError: it has none, or one with an angle, or its corners are no numbers or the wrong way round.
    """
    angle = _angle(item)
    if angle:
        raise ValueError(turned_box(angle))
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
        is_size = min(xmin, ymin) >= 0 < min(xmax, ymax) and xmin + xmax / 2 <= width + 1 and ymin + ymax / 2 <= height + 1
        other = ", or, if the last two are its width and height, write its right and bottom edges" if is_size else ""
        raise ValueError(f"the box is inverted: ({xmin:g}, {ymin:g}) to ({xmax:g}, {ymax:g}); swap its corners{other}")
    return xmin, ymin, xmax, ymax
