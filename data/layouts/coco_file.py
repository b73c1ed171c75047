"""COCO's JSON files: lists of images, annotations and categories; boxes are left, top, width and height in pixels."""

import json
import math
import mmap
import re
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.dataset.class_names import unknown_class
from data.dataset.errors import DataError
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

KEYS = ("images", "annotations", "categories")
# Values to keep of each item. Most of a large file is something else, such as masks beside boxes.
REQUIRED = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": ()}
OPTIONAL = {
    "images": ("width", "height"),
    "categories": (),
    "annotations": ("id", "image_id", "category_id", "bbox", "iscrowd"),
}
MAX_CROWDS = 0.2  # largest share of crowds in a file; in COCO itself it is 0.01
ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")


def is_coco(path: Path) -> bool:
    """Return whether a JSON file has images, annotations and categories, without parsing it, since it may be large."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return any(
                all(text.find(f'"{key}"'.encode(code)) >= 0 for key in (*KEYS, "file_name"))
                and text.find('"segments_info"'.encode(code)) < 0
                for code in ENCODINGS
            )
    except (OSError, ValueError):  # ValueError: the file is empty
        return False


def category_names(content: Mapping[str, Any]) -> dict[Hashable, str]:
    return {id_of(category["id"]): nfc(str(category["name"]).strip()) for category in content["categories"]}


class Objects(NamedTuple):
    """The annotations of a file, without crowds."""

    items: list[dict[str, Any]]
    num_marked: int  # items that are marked as crowds nevertheless
    num_crowds: int  # annotations left out as crowds


def objects_in(content: Mapping[str, Any]) -> Objects:
    """Return the single objects of a file.

    In COCO, `iscrowd: 1` marks a region of many objects, which has a mask; single objects have outlines. Some tools (CVAT)
    mark every object with a mask as a crowd.
    """
    marked = [str(item.get("iscrowd")).strip().lower() in ("1", "1.0", "true") for item in content["annotations"]]
    by_cvat = ["occluded" in item["attributes"] for item in content["annotations"]]
    masks = [crowd for item, crowd in zip(content["annotations"], marked, strict=True) if item["has_mask"]]
    are_objects = sum(marked) > MAX_CROWDS * len(marked) or sum(masks) > len(masks) / 2
    is_crowd = [crowd and not (are_objects or cvat) for crowd, cvat in zip(marked, by_cvat, strict=True)]
    items = [item for item, crowd in zip(content["annotations"], is_crowd, strict=True) if not crowd]
    return Objects(items, sum(marked) - sum(is_crowd), sum(is_crowd))


def id_of(value: Any) -> Hashable:
    """Return an id in one form, whether it was written as 1, "1", or 1.0 (by spreadsheets)."""
    if type(value) is int:
        return value
    text = str(value).strip()
    return int(text.partition(".")[0]) if re.fullmatch(r"-?\d{1,99}(\.0)?", text) else text


def read_file(path: Path) -> dict[str, Any]:
    """Read a JSON file with lists of images, annotations and categories.

    Raises:
        DataError: it cannot be read, or is not a COCO file.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise DataError(f"{path}: is nested too deep for a COCO file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not valid JSON ({error})") from None
    except ValueError:  # Python does not convert numbers with more than 4,300 digits
        raise DataError(f"{path}: has a number with thousands of digits; fix it") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in KEYS):
        raise DataError(f"{path}: expected lists of {', '.join(KEYS)}, as in COCO's instance files")
    for key, required in REQUIRED.items():
        for number, item in enumerate(content[key]):
            missing = [name for name in required if not isinstance(item, dict) or name not in item]
            if missing or not isinstance(item, dict):
                raise DataError(f"{path}: {key}[{number}]: {', '.join(missing) or 'a mapping'} is missing")
            nested = [name for name in required if isinstance(item[name], list | dict)]
            if nested:
                raise DataError(f"{path}: {key}[{number}]: {nested[0]}: expected a number or text")
            if key == "categories" and (item["name"] is None or isinstance(item["name"], bool)):
                raise DataError(f"{path}: {key}[{number}]: name: expected text, got {json.dumps(item['name'])}; write its name")
        content[key] = [_keep(item, (*required, *OPTIONAL[key])) for item in content[key]]
    for key in ("images", "categories"):
        for id_, count in Counter(id_of(item["id"]) for item in content[key]).most_common(1):
            if count > 1:
                raise DataError(f"{path}: {key}: id {id_} is used {count} times, as in merged files; make ids unique")
    return content


def _keep(item: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the needed values of one image, annotation or category, with deep nesting removed."""
    found = {name: _shallow(item[name], 2) for name in names if name in item}
    if not item.get("bbox") and item.get("segmentation"):
        found["segmentation"] = _shallow(item["segmentation"], 2)
    attributes = item.get("attributes")
    if "bbox" in names:
        found["has_mask"] = bool(item.get("segmentation"))  # or outlines
        kept = attributes if isinstance(attributes, dict) else {}
        found["attributes"] = {name: _shallow(kept[name], 0) for name in ("occluded", "rotation") if name in kept}
    return found


def _shallow(value: Any, depth: int) -> Any:
    """Return a value nested at most `depth` lists deep. Deeper lists become text, and mappings become empty."""
    if isinstance(value, list):
        return [_shallow(each, depth - 1) for each in value] if depth else reprlib.repr(value)
    return {} if isinstance(value, dict) else value


def parse_image(
    path: Path,
    image: Mapping[str, Any],
    objects: list[dict[str, Any]],
    categories: Mapping[Hashable, str],
    labels: Mapping[str, int],
    ignore_others: bool,
    photo: PhotoSize | None,
) -> PhotoObjects:
    """Return the objects of one image.

    Raises:
        DataError: one line per fault.
    """
    faults: list[str] = []
    where = f"{path}: image {image['file_name']}"
    width, height = agreed_size(_size(image), photo, where, "width and height", faults)
    boxes, numbers, ids = [], [], []
    for item in objects:
        where = f"{path}: annotation {item.get('id', '?')} of {image['file_name']}"
        name = categories.get(id_of(item.get("category_id")))
        if name is None:
            faults.append(f"{where}: category_id {reprlib.repr(item.get('category_id'))} is in no category")
        elif name not in labels:
            if not ignore_others:
                faults.append(f"{where}: {unknown_class(name, labels)}")
        else:
            try:
                boxes.append(_box(item))
            except ValueError as error:
                faults.append(f"{where}: {error}")
                continue
            numbers.append(labels[name])
            ids.append(item.get("id", "?"))
    if faults:
        raise DataError("\n".join(faults))

    def place(index: int) -> str:
        return f"{path}: annotation {ids[index]} of {image['file_name']}"

    return clip_objects(width, height, boxes, numbers, [False] * len(numbers), place)


def _box(item: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return the edges of an object's bbox, or, without one, of the box around its outlines.

    Raises:
        ValueError: it has neither, or an invalid one.
    """
    bbox, segmentation = item.get("bbox"), item.get("segmentation")
    five = bbox if isinstance(bbox, list) and len(bbox) == 5 else None
    angle = five[4] if five else item["attributes"].get("rotation")
    if five or is_rotated(angle):
        raise ValueError(rotated_box_fault(angle))
    if not bbox and isinstance(segmentation, list) and segmentation:
        return _box_around(segmentation)
    if not bbox and isinstance(segmentation, Mapping):
        raise ValueError("has a mask (RLE) but no bbox; export boxes or outlines, or add bbox with pycocotools.mask.toBbox")
    try:
        x, y, width, height = (float(value) for value in item["bbox"])
        if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"bbox {reprlib.repr(bbox)} is not left, top, width and height") from None
    return x, y, x + width, y + height


def _box_around(outlines: list[Any]) -> tuple[float, float, float, float]:
    """Return the edges of the box around outlines, each a list x, y, x, y, ...

    Raises:
        ValueError: they are not such lists.
    """
    try:
        corners = [(float(x), float(y)) for outline in outlines for x, y in zip(outline[::2], outline[1::2], strict=True)]
        xs, ys = zip(*corners, strict=True)
        if not all(map(math.isfinite, (*xs, *ys))):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError("has no bbox, and its segmentation is not a list of outlines x, y, x, y, ...") from None
    return min(xs), min(ys), max(xs), max(ys)


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    """Return width and height; 0, 0 if they are missing or nonsense."""
    try:
        width, height = int(image["width"]), int(image["height"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0, 0
    return (width, height) if 0 < width < MAX_SIDE and 0 < height < MAX_SIDE else (0, 0)
