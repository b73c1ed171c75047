"""Groups of photos that belong on one side of a split: copies of a photo, frames of a film, a patient's pictures.

A network that has seen one photo of a group knows the others, so a split through groups makes mAP too high.
"""

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.dataset.annotations import Annotations
from data.dataset.similar import descriptors, find_alike, similarities
from data.dataset.splits import role
from ssd.system.images import printable

# Endings of file names, in the order of removal. Labelling tools append the first ones to augmented copies.
EXPORTED = re.compile(r"(?:_(?:jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9a-z]{8,}$", re.IGNORECASE)
EDITED = re.compile(
    r"[ _.-]+(?:aug(?:mented)?|copy|[hv]?flip(?:ped)?|mirror(?:ed)?|rot(?:ated?)?|blur(?:red)?|bright(?:ness)?|noise|"
    r"crop(?:ped)?)[ _.-]*\d*$",
    re.IGNORECASE,
)
COPIED = re.compile(r"(?: ?\(\d\)| - [^\W\d_]+(?: \(\d\))?)$")  # photo (2), photo - Copy
FRAME = re.compile(
    r"(?:[_.-](?:mp4|mov|avi|mkv|webm|m4v)-\d+(?:_(?:jpe?g|png))?|[ _.-]*(?:frame|frm)s?[ _.-]*\d+)$", re.IGNORECASE
)
NUMBER = re.compile(r"[ _.-]*\d+$")
DIGITS = re.compile(r"(\d+)")

MAX_COPIES = 20  # more photos whose names differ by such an ending are hardly copies of one
MIN_FOLDERS = 5  # fewer folders are rather classes or parts of a data set than films or patients
FILM = 0.5  # median similarity of photos with consecutive numbers from which they are frames of a film
BURST = 3  # seconds between photos of one camera that show the same scene
MAX_SHARE = 0.5  # of all photos; a larger group is divided
NUM_BLOCKS = 20  # in which a too large group is divided


class Groups(NamedTuple):
    """The groups of n photos."""

    of_photo: np.ndarray  # [n] int64
    reasons: dict[str, list[int]]  # what joins photos, and those that it joins to an earlier one

    def __len__(self) -> int:
        return len(np.unique(self.of_photo))


def group_photos(names: Sequence[str], photos: Annotations, rule: str = "auto") -> Groups:
    """Group photos.

    Args:
        names: `[n]`, from `names_within`.
        photos: the photos.
        rule: `data.group_by`: auto, none, folder, or a regular expression. Photos for which its first group, or else the whole
            match, is equal form a group; photos that it does not match stay alone.
    """
    links = _Links(len(names))
    if rule == "folder":
        links.join_equal("folder", map(posixpath.dirname, names))
    elif rule not in ("none", "auto"):
        matches = [re.search(rule, name) for name in names]
        links.join_equal(f"data.group_by {rule}", [m and (m[1] if m.re.groups else m[0]) for m in matches])
    elif rule == "auto":
        _join_copies(links, names, photos)
        copies = links.labels.copy()
        _join_scenes(links, names, photos)
        _divide_large(links, copies, names)
    return Groups(links.labels, links.reasons)


def names_within(folder: str | Path, photos: Annotations) -> list[str]:
    """Return each photo's path within a folder, with forward slashes, without suffix and without the folders of splits."""
    paths = (os.path.splitext(os.path.relpath(photos.path(index), folder))[0] for index in range(len(photos)))
    return ["/".join(part for part in path.split(os.sep) if not role(part)) for path in paths]


def mixed_pairs(train: Annotations, val: Annotations, rule: str) -> list[tuple[int, int]]:
    """Return pairs of a training and a validation photo of one group, by index: for each validation photo the most similar."""
    both = Annotations.join([train, val])
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(both.path(index))) for index in range(len(both))])
    labels = group_photos(names_within(folder, both), both, rule).of_photo
    fine = descriptors(both.thumbnails).reshape(len(both), -1)
    rows: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels[: len(train)].tolist()):
        rows[label].append(index)
    mates = {label: fine[indices] for label, indices in rows.items()}
    labelled = enumerate(labels[len(train) :].tolist())
    return [
        (rows[label][int((mates[label] @ fine[len(train) + index]).argmax())], index)
        for index, label in labelled
        if label in mates
    ]


def mixed_warning(train: Annotations, val: Annotations) -> list[str]:
    """Return a warning if the validation photos have relatives among the training photos."""
    pairs = mixed_pairs(train, val, "auto")
    if not pairs:
        return []
    one, other = pairs[0]
    example = f"{printable(train.path(one))} and {printable(val.path(other))}{', ...' if len(pairs) > 1 else ''}"
    return [
        f"warning: {len(pairs)} of {len(val)} photos of data.val are copies or neighbours of photos of data.train ({example}): "
        "mAP will be too high; scripts/check_data.py lists them"
    ]


class _Links:
    """Joins photos step by step.

    Args:
        count: photos.
    """

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)  # [n] of each photo's group: the index of a photo in it
        self.reasons: dict[str, list[int]] = {}

    def join(self, reason: str, one: int, other: int) -> None:
        """Join the groups of two photos."""
        first, second = sorted(self.labels[[one, other]].tolist())
        if first != second:
            self.labels[self.labels == second] = first
            self.reasons.setdefault(reason, []).append(other)

    def join_equal(self, reason: str, keys: Iterable[Hashable]) -> None:
        """Join photos with equal keys; None is equal to no other."""
        first: dict[Hashable, int] = {}
        for index, key in enumerate(keys):
            if key is not None:
                self.join(reason, first.setdefault(key, index), index)


def _join_copies(links: _Links, names: Sequence[str], photos: Annotations) -> None:
    """Join photos that were made from one."""
    links.join_equal("equal files", photos.contents.tolist())
    originals = [original_name(name) for name in names]
    stems = set(names)
    plain = [COPIED.sub("", name) for name in originals]
    originals = [short if short in stems else name for short, name in zip(plain, originals, strict=True)]
    sizes = defaultdict(int)
    for name in originals:
        sizes[name] += 1
    links.join_equal("copies by name", [name if sizes[name] <= MAX_COPIES else None for name in originals])


def original_name(name: str) -> str:
    """Return the name of the photo that a copy was made of, as its own name tells."""
    return EDITED.sub("", EXPORTED.sub("", name)) or name


def _join_scenes(links: _Links, names: Sequence[str], photos: Annotations) -> None:
    """Join photos of one scene: alike, of one burst, frames of a film, or in one of many folders."""
    for alike in find_alike(photos.thumbnails):
        labels = links.labels[alike.others]
        for label in np.unique(labels[labels != links.labels[alike.photo]]).tolist():
            links.join("look alike", alike.photo, label)
    times = photos.captured
    order = np.lexsort((times[:, 1], times[:, 0]))
    for one, other in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        if times[one, 0] and times[one, 0] == times[other, 0] and times[other, 1] - times[one, 1] <= BURST:
            links.join("one camera within seconds", min(one, other), max(one, other))
    originals = [EXPORTED.sub("", name) for name in names]
    films = [FRAME.sub("", name) if FRAME.search(name) else None for name in originals]
    links.join_equal("frames of a film", films)
    numbered: dict[str, list[int]] = defaultdict(list)
    for index, (name, film) in enumerate(zip(originals, films, strict=True)):
        if film is None and NUMBER.search(name):
            numbered[NUMBER.sub("", name)].append(index)
    for indices in numbered.values():
        rows = sorted(indices, key=lambda index: _natural(originals[index]))
        alike = similarities(photos.thumbnails[rows[:-1]], photos.thumbnails[rows[1:]])
        if len(rows) > 2 and np.median(alike) >= FILM:
            for index in rows[1:]:
                links.join("frames of a film", rows[0], index)
    folders = list(map(posixpath.dirname, names))
    if MIN_FOLDERS <= len(set(folders)) <= len(names) / 2 and _share_classes(folders, photos):
        links.join_equal("folder", folders)


def _share_classes(folders: Sequence[str], photos: Annotations) -> bool:
    """Return whether every class has objects in several folders, so that folders are not classes."""
    numbers = {folder: number for number, folder in enumerate(dict.fromkeys(folders))}
    owners = np.repeat([numbers[folder] for folder in folders], np.diff(photos.starts))
    return all(len(np.unique(owners[photos.labels == label])) > 1 for label in np.unique(photos.labels))


def _divide_large(links: _Links, copies: np.ndarray, names: Sequence[str]) -> None:
    """Divide a group of most photos, such as a single film, into blocks in the order of names; copies stay together, unless all
    photos are copies of one.

    A photo at the end of a block still looks like the first of the next, but far fewer photos do than in a random split.
    """
    labels, counts = np.unique(links.labels, return_counts=True)
    if not len(labels) or counts.max() <= MAX_SHARE * len(names):
        return
    rows = np.flatnonzero(links.labels == labels[counts.argmax()]).tolist()
    if len(np.unique(copies)) == 1:
        copies = np.arange(len(names))
    units = dict.fromkeys(copies[sorted(rows, key=lambda row: _natural(names[row]))].tolist())  # in order
    first: dict[int, int] = {}
    block = {unit: first.setdefault(number * NUM_BLOCKS // len(units), unit) for number, unit in enumerate(units)}
    links.labels[rows] = [block[unit] for unit in copies[rows].tolist()]
    links.reasons["consecutive blocks of one large group"] = rows


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in DIGITS.split(name)]


def describe_groups(groups: Groups, photos: Annotations) -> str:
    """Describe groups of photos in a line; empty if every photo is alone."""
    if len(groups) == len(photos):
        return ""
    reasons = [
        f"{len(indices)} {reason} ({printable(os.path.basename(photos.path(indices[0])))}{', ...' if len(indices) > 1 else ''})"
        for reason, indices in groups.reasons.items()
    ]
    return f"{len(photos)} photos form {len(groups)} groups: {'; '.join(reasons)}"
