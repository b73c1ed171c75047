"""Data sets in PASCAL VOC layout: JPEGImages, Annotations and ImageSets/Main."""

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from data.annotation import Annotation, DataError, PhotoSize, agreed_size, clipped_annotation, unknown_class
from data.listing import Entry, one_photo, photos_in
from data.splits import divide
from ssd.boxes import voc_to_edges
from ssd.config import SourceConfig

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_layout(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() or (folder / "JPEGImages").is_dir() or (folder / "ImageSets").is_dir()


def splits(folder: Path) -> list[str]:
    """The names of the splits that a folder has."""
    return sorted(path.stem for path in (folder / "ImageSets" / "Main").glob("*.txt"))


def class_counts(folder: Path) -> Counter[str]:
    """How many objects of each name there are, in the order in which they are met; what cannot be read counts as none."""
    counts: Counter[str] = Counter()
    for path in sorted((folder / "Annotations").glob("*.xml")):
        with suppress(OSError, ElementTree.ParseError):
            names = (item.findtext("name") or "" for item in ElementTree.parse(path).iterfind("object"))
            counts.update(filter(None, map(str.strip, names)))
    return counts


def entries(
    folder: Path, source: SourceConfig, labels: Mapping[str, int], ignore_others: bool, seed: int, notes: list[str]
) -> list[Entry]:
    """The photos that one source names.

    Args:
        folder: the data set.
        source: which part of it.
        labels: label of each class name.
        ignore_others: leave out objects of other classes instead of refusing them.
        seed: of the division of a folder without splits.
        notes: what was mended is added to them.

    Raises:
        DataError: the split's file is missing, or names no photo.
    """
    photos = photos_in(folder / "JPEGImages")
    listed = []
    for photo_id in read_split(folder, source, seed, notes):
        read = partial(parse_annotation, folder / "Annotations" / f"{photo_id}.xml", labels, ignore_others)
        listed.append(Entry(photo_id, *one_photo(photos, photo_id, folder / "JPEGImages"), read))
    return listed


def read_split(folder: Path, source: SourceConfig, seed: int, notes: list[str]) -> list[str]:
    """The ids of the photos that one source names.

    Raises:
        DataError: the folder or the split's file is missing, or it names no photo.
    """
    list_file = folder / "ImageSets" / "Main" / f"{source.split}.txt"
    annotated = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
    if list_file.is_file():
        ids = _read_ids(list_file, set(annotated))
    elif source.split == "all" or source.val_fraction is not None:
        ids = annotated
    else:
        known = sorted(path.stem for path in list_file.parent.glob("*.txt"))
        hint = f"there are: {', '.join(known)}" if known else "set split: all, or val_fraction to split the folder"
        raise DataError(f"{list_file}: no such split; {hint}")
    if source.val_fraction is not None and list_file.is_file():
        raise DataError(f"{folder}: val_fraction goes with split train or val of a folder without ImageSets")
    ids = divide(ids, folder, source, seed)
    tricks = [photo_id for photo_id in ids if set(photo_id) & set("/\\\0")]
    if tricks:
        raise DataError(f"{list_file}: {tricks[0]!r} is a path; an id is the name of a photo in JPEGImages, without suffix")
    distinct = list(dict.fromkeys(ids))
    if len(distinct) < len(ids):
        notes.append(f"{list_file}: {len(ids) - len(distinct)} ids stand more than once and were taken once")
    if not distinct:
        raise DataError(f"{list_file if list_file.is_file() else folder / 'Annotations'}: names no photo")
    return distinct


def _read_ids(list_file: Path, annotated: set[str]) -> list[str]:
    """Ids, one a line. VOC's files of one class have a second column (-1, 0 or 1): it is left out, unless an annotation
    shows that it belongs to the name."""
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: cannot be read: {error}") from None
    ids = []
    for line in filter(None, map(str.strip, lines)):
        name, _, column = line.rpartition(" ")
        has_column = name and column in ("-1", "0", "1") and line not in annotated
        ids.append(name.rstrip() if has_column else line)
    return ids


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
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    # Equal corners are a box of one pixel by VOC's rule, but in practice always a slip of the hand: kept as no area.
    is_slip = (corners[:, :2] == corners[:, 2:]).any(axis=1, keepdims=True)
    return clipped_annotation(width, height, np.where(is_slip, corners, voc_to_edges(corners)), labels, difficult)


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


def _box(item: ElementTree.Element) -> tuple[float, float, float, float]:
    """The corners of one object's box, inclusive pixels counted from 1.

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
    return xmin, ymin, xmax, ymax
