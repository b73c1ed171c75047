"""Data sets in YOLO's layout: images, and labels with a text file a photo: class, centre and size, relative to the photo."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import yaml

from data.annotation import Annotation, DataError, PhotoSize, clipped_annotation, unknown_class
from data.listing import Entry, one_photo, photos_in
from data.splits import divide
from ssd.config import SourceConfig

TOLERANCE = 0.01  # how far beyond 0..1 a number may lie: tools round
# Where the photos and labels of a split may be; the last, of all splits.
FOLDERS = (("images/{split}", "labels/{split}"), ("{split}/images", "{split}/labels"))
WHOLE_FOLDERS = ("images", "labels")
SYNONYMS = {"val": "valid", "valid": "val"}


def is_layout(folder: Path) -> bool:
    return (folder / "labels").is_dir() or any(folder.glob("*/labels"))


def splits(folder: Path) -> list[str]:
    """The names of the splits that a folder has."""
    found = {path.name for path in folder.glob("images/*") if path.is_dir()}
    return sorted(found | {path.parent.name for path in folder.glob("*/labels")})


def class_counts(folder: Path) -> Counter[str]:
    """How many objects of each name there are, in the order of their numbers; what cannot be read counts as none."""
    numbers: Counter[int] = Counter()
    for path in sorted(folder.glob("**/labels/**/*.txt")):
        with suppress(OSError, ValueError):
            lines = path.read_text(encoding="utf-8-sig").splitlines() if path.name != "classes.txt" else []
            numbers.update(int(float(line.split()[0])) for line in lines if line.strip())
    names = class_names(folder)
    named = names or [f"class {number}" for number in range(max(numbers, default=-1) + 1)]
    # Without names every number has to keep its place.
    return Counter({name: numbers[i] for i, name in enumerate(named) if numbers[i] or not names})


def entries(
    folder: Path, source: SourceConfig, labels: Mapping[str, int], ignore_others: bool, seed: int, notes: list[str]
) -> list[Entry]:
    """The photos that one source names; arguments as in `data.layouts.voc.entries`. A photo without a text file has no object.

    Raises:
        DataError: there is no folder of that split, or it holds no photo.
    """
    images, texts, is_whole = find_folders(folder, source)
    photos = photos_in(images)
    if source.val_fraction is not None and not is_whole:
        raise DataError(f"{folder}: val_fraction goes with a folder without splits of its own")
    stems = divide(list(photos), folder, source, seed) if is_whole else list(photos)
    if not stems:
        raise DataError(f"{images}: holds no photo")
    names = class_names(folder) or list(labels)
    lonely = sorted(path.stem for path in texts.glob("*.txt") if path.stem not in photos and path.name != "classes.txt")
    if lonely:
        notes.append(f"{texts}: {len(lonely)} label files have no photo and were left out ({lonely[0]}.txt, ...)")
    listed = []
    for stem in stems:
        read = partial(read_labels, texts / f"{stem}.txt", names, labels, ignore_others)
        listed.append(Entry(stem, *one_photo(photos, stem, images), read))
    return listed


def find_folders(folder: Path, source: SourceConfig) -> tuple[Path, Path, bool]:
    """Folders of photos and labels, and whether they are for all splits.

    Raises:
        DataError: there are none.
    """
    for split in (source.split, SYNONYMS.get(source.split, source.split)):
        for pair in FOLDERS:
            images, texts = (folder / pattern.format(split=split) for pattern in pair)
            if images.is_dir():
                return images, texts, False
    images, texts = (folder / name for name in WHOLE_FOLDERS)
    if images.is_dir() and photos_in(images) and (source.split == "all" or source.val_fraction is not None):
        return images, texts, True
    raise DataError(f"{folder}: has no images/{source.split} and no {source.split}/images")


def class_names(folder: Path) -> list[str]:
    """The names by number, from data.yaml or classes.txt; empty where neither is there.

    Raises:
        DataError: the file cannot be understood.
    """
    for path in (*folder.glob("*.yaml"), *folder.glob("*.yml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):
            return [str(names[number]) for number in sorted(names)]
        if isinstance(names, list):
            return [str(name) for name in names]
    for path in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if path.is_file():
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return []


def read_labels(
    path: Path, names: Sequence[str], labels: Mapping[str, int], ignore_others: bool, photo: PhotoSize | None
) -> Annotation:
    """The objects of one photo. Outlines (more than four numbers) become the boxes around them.

    Raises:
        DataError: with one line for each fault in the file.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    # YOLO's tools turn photos upright before anything else.
    width, height = (photo.upright_width, photo.upright_height) if photo else (0, 0)
    faults: list[str] = []
    boxes, numbers = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            label, box = _parse(line)
        except ValueError as error:
            faults.append(f"{where}: {error}")
            continue
        if label >= len(names):
            faults.append(f"{where}: class {label}, but the names end at {len(names) - 1} ({names[-1]})")
        elif names[label] in labels:
            x1, y1, x2, y2 = box
            boxes.append((x1 * width, y1 * height, x2 * width, y2 * height))
            numbers.append(labels[names[label]])
        elif not ignore_others:
            faults.append(f"{where}: {unknown_class(names[label], labels)}")
    if faults:
        raise DataError("\n".join(faults))
    return clipped_annotation(width, height, boxes, numbers, [False] * len(numbers))


def _parse(line: str) -> tuple[int, tuple[float, float, float, float]]:
    """Class and corners, relative to the photo, of one line.

    Raises:
        ValueError: it is not a class and four numbers, or an outline's, in 0..1.
    """
    first, *rest = line.split()
    try:
        label, values = int(float(first)), [float(text) for text in rest]
    except ValueError:
        raise ValueError(f"expected numbers, got {line.strip()!r}") from None
    if label < 0 or label != float(first) or len(values) < 4 or (len(values) > 4 and len(values) % 2):
        raise ValueError(f"expected a class and four numbers (centre, size), got {line.strip()!r}")
    if not all(math.isfinite(value) and -TOLERANCE <= value <= 1 + TOLERANCE for value in values):
        raise ValueError(f"expected numbers from 0 to 1, relative to the photo, got {line.strip()!r}")
    if len(values) == 4:
        x, y, width, height = values
        return label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return label, (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
