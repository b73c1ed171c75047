"""Find the photo of an annotation file, and the split of a file, by names and folders."""

import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from data.dataset.entry import PhotoEntry
from data.dataset.names import nfc
from data.dataset.splits import role, words
from data.layouts.tree import FileTree
from ssd.system.images import SUFFIXES

# Words in folder names that name the kind of files rather than a part of the data: images/train and train_labels both hold
# the part "train".
KINDS = frozenset(
    (
        *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pic", "pics", "jpegimages"),
        *("annotation", "annotations", "annot", "annots", "xml", "xmls", "label", "labels", "txt", "json"),
        *("box", "boxes", "bbox", "bboxes", "data", "dataset", "set", "obj", "voc", "yolo", "coco"),
    )
)
MAX_SAME_STEM = 64  # photos with one name to consider for an annotation file elsewhere


def group_by(paths: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    """Group paths by a key, in order."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(key(path), []).append(path)
    return groups


def stem_of(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


@cache
def part_of(folder: str) -> str:
    """Return the part of the data that a folder holds: its path without the words in `KINDS`.

    `images/train/cam 1` and `Train/Annotations/cam 1` are both `train/cam_1`.
    """
    return "/".join(filter(None, map(_part, folder.split("/"))))


def key_of(path: str) -> str:
    """Return the key that a photo and its annotation file share: part and stem."""
    part = part_of(posixpath.dirname(path))
    return f"{part}/{stem_of(path)}" if part else stem_of(path)


@cache
def split_of(folder: str) -> str:
    """Return the split in a folder's path (train, val, test, trainval, with a year if present); empty if none."""
    for part in map(_part, folder.split("/")):
        if role(part) not in ("", "all"):
            return part
    return ""


@cache
def _part(name: str) -> str:
    """Return one folder's name without the words in `KINDS`. A split is named by its role, with the year."""
    part = "_".join(word for word in words(name) if word not in KINDS)
    return role(part) + "".join(filter(str.isdigit, part)) if role(part) else part


def same_split(one: str, other: str) -> bool:
    """Return whether two values of `split_of` may be one split, as train and trainval, or train and train2017 may."""
    roles = {role(one), role(other)}
    years = {"".join(filter(str.isdigit, name)) for name in (one, other)} - {""}
    return not one or not other or (len(years) < 2 and (len(roles) == 1 or ("trainval" in roles and "test" not in roles)))


def split_of_file(path: str) -> str:
    """Return the split in the path of a file's folder."""
    return split_of(posixpath.dirname(path))


def photo_named(path: str) -> str:
    """Return the photo that an annotation file names with its suffix (a.jpg for a.jpg.txt); empty if it does not."""
    name = posixpath.splitext(path)[0]
    return name if name.lower().endswith(SUFFIXES) else ""


def unique_photo_entry(tree: FileTree, name: str, photos: Sequence[str], read: Callable) -> PhotoEntry:
    """Return the entry of the only photo, or a faulty one if there are several, which differ only in their suffix."""
    if len(photos) == 1:
        return PhotoEntry(name, tree.path(photos[0]), "", read)
    fault = f"{tree.path(photos[0])}: {posixpath.basename(photos[1])} has the same name; remove or rename one of them"
    return PhotoEntry(name, None, fault, read)


class Pairs(NamedTuple):
    """Annotation files with their photos."""

    photos: dict[str, list[str]]  # of each annotation file: one, or several of the same name in one folder
    doubles: list[str]  # annotation files whose photo has another one
    unpaired: list[str]  # annotation files without a photo


def pair(annotations: Iterable[str], photos: Sequence[str]) -> Pairs:
    """Pair annotation files with photos.

    A pair has the same name and lies side by side, or in folders of the same part of the data (`images/a/1.jpg` with
    `labels/a/1.txt` or `labels/a/1.jpg.txt`). Otherwise a file gets the only photo of its name that has no annotation yet and
    does not belong to another split.
    """
    by_key = group_by(photos, key_of)
    folders = {posixpath.dirname(photo) for photo in photos}
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    doubles, rest = [], []
    # If labels lie both beside the photos and in a folder of their own, prefer the latter.
    for path in sorted(annotations, key=lambda path: (posixpath.dirname(path) in folders, path)):
        candidates = by_key.get(key_of(path), []) or _named_photos(path, by_key, key_of)
        beside = [photo for photo in candidates if posixpath.dirname(photo) == posixpath.dirname(path)]
        mates = beside or candidates
        if not mates:
            rest.append(path)
        elif mates[0] in taken:
            doubles.append(path)
        else:
            found[path] = mates
            taken.update(mates)
    unpaired = _pair_by_stem(rest, photos, found, taken, doubles) if rest else []
    return Pairs(found, doubles, unpaired)


def _named_photos(path: str, photos: Mapping[str, list[str]], key: Callable[[str], str]) -> list[str]:
    """Return the photos that an annotation file names with their suffix, or else with any other suffix."""
    named = photo_named(path)
    found = photos.get(key(named), []) if named else []
    return [photo for photo in found if photo.lower().endswith(posixpath.basename(named).lower())] or found


def _pair_by_stem(
    rest: list[str], photos: Sequence[str], found: dict[str, list[str]], taken: set[str], doubles: list[str]
) -> list[str]:
    """Pair by name alone: add to `found`, `taken` and `doubles`, and return the files without a photo."""

    def key(path: str) -> str:
        return stem_of(path).casefold()

    by_stem = group_by(photos, key)
    unpaired = []
    for path in rest:
        candidates = by_stem.get(key(path), []) or _named_photos(path, by_stem, key)
        candidates = candidates if len(candidates) <= MAX_SAME_STEM else []
        candidates = [photo for photo in candidates if same_split(split_of_file(photo), split_of_file(path))]
        free = [photo for photo in candidates if photo not in taken]
        if len(free) > 1:
            shared = {photo: len(set(photo.split("/")) & set(path.split("/"))) for photo in free}
            free = [photo for photo in free if shared[photo] == max(shared.values())]
        if len(free) == 1:
            found[path] = free
            taken.add(free[0])
        elif candidates and not free:
            doubles.append(path)
        else:
            unpaired.append(path)
    return unpaired


def clean_lines(text: str) -> list[str]:
    """Return the lines of a list that are not blank."""
    return [nfc(line.strip()) for line in text.splitlines() if line.strip()]
