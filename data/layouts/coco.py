"""Data sets in COCO's layout: a JSON file with images, annotations and categories, and the photos beside it."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data.annotation import Annotation, DataError, PhotoSize, agreed_size, clipped_annotation, unknown_class
from data.listing import Entry
from data.splits import divide
from ssd.config import SourceConfig

KEYS = ("images", "annotations", "categories")
# Where the JSON file of a split may be, the likeliest first.
FILES = (
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "{split}/_annotations.coco.json",
    "{split}.json",
)
WHOLE_FILES = ("_annotations.coco.json", "annotations.json", "instances.json", "coco.json", "annotations/instances.json")
PHOTO_FOLDERS = ("{split}", "images/{split}", "images", "", "JPEGImages")


def is_layout(folder: Path) -> bool:
    return folder.suffix == ".json" or any(folder.glob("*.json")) or any(folder.glob("*/*.json"))


def splits(folder: Path) -> list[str]:
    """The names of the splits that a folder has."""
    found = {path.stem.removeprefix("instances_") for path in folder.glob("annotations/instances_*.json")}
    found |= {path.parent.name for path in folder.glob("*/_annotations.coco.json")}
    return sorted(found | ({"train", "val", "valid", "test"} & {path.stem for path in folder.glob("*.json")}))


def class_counts(folder: Path) -> Counter[str]:
    """How many objects of each name there are, in the order of the categories.

    Raises:
        DataError: a file cannot be read.
    """
    counts: Counter[str] = Counter()
    paths = [folder] if folder.suffix == ".json" else [*folder.glob("*.json"), *folder.glob("*/*.json")]
    for path in sorted(paths):
        content = read_file(path)
        names = {category["id"]: str(category["name"]).strip() for category in content["categories"]}
        used = Counter(names.get(item.get("category_id")) for item in content["annotations"])
        counts.update({name: used[name] for name in names.values() if used[name]})
    return counts


def entries(
    folder: Path, source: SourceConfig, labels: Mapping[str, int], ignore_others: bool, seed: int, notes: list[str]
) -> list[Entry]:
    """The photos that one source names; arguments as in `data.layouts.voc.entries`. `folder` may be the JSON file itself.

    Raises:
        DataError: the JSON file is missing or is none of COCO's.
    """
    path, is_whole = find_file(folder, source)
    content = read_file(path)
    base = folder.parent if folder.suffix == ".json" else folder
    names = [str(image["file_name"]) for image in content["images"]]
    if source.val_fraction is not None and not is_whole:
        raise DataError(f"{path}: val_fraction goes with a single file for all photos")
    chosen = set(divide(names, folder, source, seed)) if is_whole else set(names)
    photo_folder = _photo_folder(base, path.parent, source.split, names)
    categories = {category["id"]: str(category["name"]).strip() for category in content["categories"]}
    objects: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    orphans = 0
    for item in content["annotations"]:
        if item.get("image_id") in objects:
            objects[item["image_id"]].append(item)
        else:
            orphans += 1
    if orphans:
        notes.append(f"{path}: {orphans} annotations are of images that are not listed, and were left out")
    listed = []
    for image in content["images"]:
        name = str(image["file_name"])
        if name in chosen:
            read = partial(to_annotation, path, image, objects[image["id"]], categories, labels, ignore_others)
            photo = photo_folder / name
            is_inside = photo.resolve().is_relative_to(photo_folder.resolve())
            fault = "" if photo.is_file() and is_inside else f"{photo}: no such photo, named in {path}"
            listed.append(Entry(name, None if fault else photo, fault, read))
    if not listed:
        raise DataError(f"{path}: names no photo")
    return listed


def find_file(folder: Path, source: SourceConfig) -> tuple[Path, bool]:
    """The JSON file of a split, and whether it is one for all splits.

    Raises:
        DataError: there is none.
    """
    if folder.suffix == ".json":
        return folder, True
    for pattern in FILES:
        path = folder / pattern.format(split=source.split)
        if path.is_file():
            return path, False
    inside = [folder / name for name in WHOLE_FILES if (folder / name).is_file()] or sorted(folder.glob("*.json"))
    if len(inside) == 1 and (source.split == "all" or source.val_fraction is not None):
        return inside[0], True
    tried = ", ".join(pattern.format(split=source.split) for pattern in FILES)
    raise DataError(f"{folder}: has no JSON file for split {source.split} ({tried}); name the file itself in path")


def read_file(path: Path) -> dict[str, Any]:
    """The content of a JSON file, with lists of images, annotations and categories.

    Raises:
        DataError: it cannot be read, or is none of COCO's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in KEYS):
        raise DataError(f"{path}: expected lists of {', '.join(KEYS)}, as COCO's instance files have them")
    needed = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": ()}
    for key, entries_needed in needed.items():
        for number, item in enumerate(content[key]):
            missing = [name for name in entries_needed if not isinstance(item, dict) or name not in item]
            if missing or not isinstance(item, dict):
                raise DataError(f"{path}: {key}[{number}]: {', '.join(missing) or 'a mapping'} is missing")
    return content


def _photo_folder(base: Path, beside: Path, split: str, names: list[str]) -> Path:
    """The folder that holds the first photo that is found at all; `base` where none is."""
    folders = [beside, *(base / pattern.format(split=split) for pattern in PHOTO_FOLDERS)]
    for name in names[:10]:
        for folder in folders:
            if (folder / name).is_file():
                return folder
    return base


def to_annotation(
    path: Path,
    image: Mapping[str, Any],
    objects: list[dict[str, Any]],
    categories: Mapping[Any, str],
    labels: Mapping[str, int],
    ignore_others: bool,
    photo: PhotoSize | None,
) -> Annotation:
    """The objects of one image. Crowds count as difficult: trained on, and neither missed nor hit in evaluation.

    Raises:
        DataError: with one line for each fault.
    """
    faults: list[str] = []
    where = f"{path}: image {image['file_name']}"
    width, height = agreed_size(_size(image), photo, where, "width and height", faults)
    boxes, numbers, difficult = [], [], []
    for item in objects:
        where = f"{path}: annotation {item.get('id', '?')} of {image['file_name']}"
        name = categories.get(item.get("category_id"))
        if name is None:
            faults.append(f"{where}: category_id {item.get('category_id')!r} stands in no category")
        elif name not in labels:
            if not ignore_others:
                faults.append(f"{where}: {unknown_class(name, labels)}")
        else:
            try:
                x, y, box_width, box_height = (float(value) for value in item["bbox"])
                if not all(map(math.isfinite, (x, y, box_width, box_height))) or min(box_width, box_height) < 0:
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                faults.append(f"{where}: bbox {item.get('bbox')!r} is not left, top, width and height")
                continue
            boxes.append((x, y, x + box_width, y + box_height))
            numbers.append(labels[name])
            difficult.append(bool(item.get("iscrowd", 0)))
    if faults:
        raise DataError("\n".join(faults))
    return clipped_annotation(width, height, boxes, numbers, difficult)


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height; 0, 0 where they are missing or make no sense."""
    try:
        width, height = int(image["width"]), int(image["height"])
    except (KeyError, TypeError, ValueError):
        return 0, 0
    return (width, height) if width > 0 and height > 0 else (0, 0)
