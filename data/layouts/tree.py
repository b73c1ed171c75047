"""The files of a data set's folder, listed once, and which photo belongs to which annotation file."""

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from data.dataset.listing import composed
from data.dataset.splits import role, words
from data.layouts.named import base_of
from ssd.system.files import is_visited
from ssd.system.images import SUFFIXES

MAX_DEPTH = 12  # folders below each other
READ = (".xml", ".txt", ".json", ".yaml", ".yml", ".names", ".labels", ".data")  # suffixes of what a layout may read
# Words in the names of folders that say what is in them, and not which part of the data: images/train and train_labels are
# both of the part "train".
KINDS = frozenset(
    (
        *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pic", "pics", "jpegimages"),
        *("annotation", "annotations", "annot", "annots", "xml", "xmls", "label", "labels", "txt", "json"),
        *("box", "boxes", "bbox", "bboxes", "data", "dataset", "set", "obj", "voc", "yolo", "coco"),
    )
)
MAX_SAME_STEM = 64  # photos of one name that are looked at for an annotation file elsewhere


@dataclass(frozen=True)
class Tree:
    """The files below a folder, as paths relative to it, with slashes and composed letters, in order."""

    folder: Path
    photos: tuple[str, ...]
    files: dict[str, tuple[str, ...]]  # what a layout may read, by suffix
    others: Counter[str]  # how many files there are of each suffix that none reads
    named: str = ""  # the JSON file or data.yaml that was named in place of the folder; it may lie outside of it
    spelt: Mapping[str, str] = field(default_factory=dict)  # how paths are called in the file system, where it differs

    def of(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes."""
        return sorted(path for suffix in suffixes for path in self.files.get(suffix, ()))

    def path(self, name: str) -> Path:
        return self.folder / self.spelt.get(name, name)

    def contents(self) -> str:
        """What is in the folder, in words."""
        counts = {"photos": len(self.photos)} | {suffix: len(self.files[suffix]) for suffix in sorted(self.files)}
        counts |= dict(sorted(self.others.items()))
        files = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no files"
        every = (*self.photos, *(path for paths in self.files.values() for path in paths))
        folders = sorted({path.partition("/")[0] for path in every if "/" in path})
        return f"{files}; folders: {', '.join(folders[:12]) + (', ...' if len(folders) > 12 else '') or 'none'}"


def list_tree(folder: Path) -> Tree:
    """Lists all files of a data set's folder, or of the one that a file stands for, in one pass.

    Hidden files and macOS's `__MACOSX` are left out. Links to folders elsewhere are followed; those into the data set, or to
    one above it, would list its photos twice.

    Raises:
        DataError: a file is named that stands for no data set.
        OSError: the folder cannot be listed.
    """
    base = base_of(folder)
    named = "" if base == folder else Path(os.path.relpath(folder, base)).as_posix()
    photos: list[str] = []
    files: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    listed = [os.path.realpath(base)]
    waiting = [("", 0)]
    while waiting:
        place, depth = waiting.pop()
        with os.scandir(base / place) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name == "__MACOSX":
                    continue
                suffix = posixpath.splitext(name)[1].lower()
                if suffix in SUFFIXES:
                    photos.append(place + name)
                elif suffix in READ:
                    files.setdefault(suffix, []).append(place + name)
                elif os.path.isdir(entry.path):  # entry.is_dir raises OSError at a link to itself
                    if depth < MAX_DEPTH and not (entry.is_symlink() and is_visited(entry.path, listed)):
                        waiting.append((f"{place}{name}/", depth + 1))
                else:
                    others[suffix or "without suffix"] += 1
    found = {*photos, *(path for paths in files.values() for path in paths)}
    spelt = {composed(path): path for path in found if composed(path) not in found}
    names = {path: name for name, path in spelt.items()}

    def in_order(paths: list[str]) -> tuple[str, ...]:
        return tuple(sorted(names.get(path, path) for path in paths))

    return Tree(base, in_order(photos), {key: in_order(paths) for key, paths in files.items()}, others, named, spelt)


@cache
def part_of(place: str) -> str:
    """Which part of the data a folder holds by its path, without the words that say what kind of files are in it:
    `images/train/cam 1` and `Train/Annotations/cam 1` are both `train/cam_1`."""
    return "/".join(filter(None, map(_part, place.split("/"))))


@cache
def split_of(place: str) -> str:
    """The split that a folder belongs to by its path (train, val, test, trainval, with a year if there is one); or nothing."""
    for part in map(_part, place.split("/")):
        if role(part) not in ("", "all"):
            return part
    return ""


@cache
def _part(name: str) -> str:
    """The name of one folder without the words of KINDS; those of splits as `role` calls them, with the year."""
    part = "_".join(word for word in words(name) if word not in KINDS)
    return role(part) + "".join(filter(str.isdigit, part)) if role(part) else part


def stem_of(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def key_of(path: str) -> str:
    """What a photo and its annotation file have in common: part and stem."""
    part = part_of(posixpath.dirname(path))
    return f"{part}/{stem_of(path)}" if part else stem_of(path)


def photo_named(path: str) -> str:
    """The path of the photo that an annotation file is named after with its suffix (a.jpg.txt); empty where it is not."""
    name = posixpath.splitext(path)[0]
    return name if name.lower().endswith(SUFFIXES) else ""


class Pairs(NamedTuple):
    """Which photos belong to which annotation files."""

    photos: dict[str, list[str]]  # of each annotation file: one, or several of the same name in one folder
    doubles: list[str]  # annotation files whose photo has another one
    lonely: list[str]  # annotation files without a photo


def pair(annotations: Iterable[str], photos: Sequence[str]) -> Pairs:
    """Pairs annotation files with photos: of the same name, side by side or in folders of the same part of the data
    (`images/a/1.jpg` with `labels/a/1.txt`, or `labels/a/1.jpg.txt`); where none is there, the only photo of that name that has
    no annotation yet and is of no other split."""
    by_key: dict[str, list[str]] = {}
    for photo in photos:
        by_key.setdefault(key_of(photo), []).append(photo)
    places = {posixpath.dirname(photo) for photo in photos}
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    doubles, rest = [], []
    # Where labels lie beside the photos and in a folder of their own, the latter are meant.
    for path in sorted(annotations, key=lambda path: (posixpath.dirname(path) in places, path)):
        candidates = by_key.get(key_of(path), []) or _whole_name(path, by_key, key_of)
        beside = [photo for photo in candidates if posixpath.dirname(photo) == posixpath.dirname(path)]
        mates = beside or candidates
        if not mates:
            rest.append(path)
        elif mates[0] in taken:
            doubles.append(path)
        else:
            found[path] = mates
            taken.update(mates)
    lonely = _pair_rest(rest, photos, found, taken, doubles) if rest else []
    return Pairs(found, doubles, lonely)


def _whole_name(path: str, photos: Mapping[str, list[str]], key: Callable[[str], str]) -> list[str]:
    """The photos that an annotation file is named after with their suffix; with another one where none has it."""
    named = photo_named(path)
    found = photos.get(key(named), []) if named else []
    return [photo for photo in found if photo.lower().endswith(posixpath.basename(named).lower())] or found


def _pair_rest(
    rest: list[str], photos: Sequence[str], found: dict[str, list[str]], taken: set[str], doubles: list[str]
) -> list[str]:
    """Pairs by name alone; adds to `found`, `taken` and `doubles`, and returns what is left."""
    by_stem: dict[str, list[str]] = {}
    for photo in photos:
        by_stem.setdefault(stem_of(photo).casefold(), []).append(photo)
    lonely = []
    for path in rest:
        candidates = by_stem.get(stem_of(path).casefold(), [])
        candidates = candidates or _whole_name(path, by_stem, lambda name: stem_of(name).casefold())
        candidates = candidates if len(candidates) <= MAX_SAME_STEM else []
        candidates = [
            photo for photo in candidates if same_split(split_of(posixpath.dirname(photo)), split_of(posixpath.dirname(path)))
        ]
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
            lonely.append(path)
    return lonely


def same_split(one: str, other: str) -> bool:
    """Whether two files may be of one split, each given by `split_of`: train and trainval, train and train2017."""
    roles = {role(one), role(other)}
    years = {"".join(filter(str.isdigit, name)) for name in (one, other)} - {""}
    return not one or not other or (len(years) < 2 and (len(roles) == 1 or ("trainval" in roles and "test" not in roles)))
