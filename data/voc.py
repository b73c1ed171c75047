"""Data sets in PASCAL VOC layout: JPEGImages, Annotations and ImageSets/Main."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from data.annotation import DataError, parse_annotation
from data.source import Entry, divide, one_photo, photos_in
from ssd.config import SourceConfig


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
