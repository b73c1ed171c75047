"""Data sets in COCO's layout: JSON files with images, annotations and categories, and the photos somewhere beside them."""

import posixpath
import re
from collections import Counter
from collections.abc import Hashable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data.dataset.annotation import DataError
from data.dataset.inspection import Watch, unwatched
from data.dataset.listing import Entry, composed, counted
from data.dataset.splits import role, words
from data.layouts.coco_file import ENCODINGS, category_names, id_of, is_coco, objects_in, read_file, to_annotation
from data.layouts.tree import Tree, list_tree, same_split, split_of, stem_of
from ssd.system.images import passed_over

MAX_JUDGED = 50  # JSON files that are looked at: tools that write one a photo have no other than those
OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")  # COCO's own, beside instances_


class Coco:
    """A folder with a JSON file for all photos, or one a split; or that JSON file itself."""

    def __init__(self, tree: Tree) -> None:
        self.is_file = tree.named.lower().endswith(".json")
        self.files = self._choose(tree)
        # A file named itself may lie in annotations/ beside the photos' folder.
        self.tree = list_tree(tree.folder.parent) if self.is_file and not tree.photos else tree
        self.base = "" if self.tree is tree else f"{tree.folder.name}/"

    @staticmethod
    def _choose(tree: Tree) -> list[str]:
        """The JSON files of objects, in the order of their names."""
        paths = tree.of(".json")
        if tree.named:
            return [tree.named]
        if len(paths) > MAX_JUDGED:
            paths = sorted(paths, key=lambda path: (path.count("/"), -tree.path(path).stat().st_size))[:MAX_JUDGED]
        with_instances = {posixpath.dirname(path) for path in paths if posixpath.basename(path).startswith("instances_")}
        return sorted(
            path
            for path in paths
            if not (posixpath.dirname(path) in with_instances and posixpath.basename(path).startswith(OTHER_TASKS))
            and is_coco(tree.path(path))
        )

    @cached_property
    def by_split(self) -> dict[str, list[str]]:
        """The JSON files of each split; under an empty name those of no split."""
        found: dict[str, list[str]] = {}
        for path in self.files:
            found.setdefault("" if self.is_file else _split_name(path), []).append(path)
        return found

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """The photos of each file name, without regard to case."""
        found: dict[str, list[str]] = {}
        for photo in self.tree.photos:
            found.setdefault(posixpath.basename(photo).casefold(), []).append(photo)
        return found

    def num_annotated(self) -> float:
        return 0.5 * self.is_file + sum(_count(self.tree.path(self.base + path), '"file_name"') for path in self.files)

    def splits(self) -> list[str]:
        return sorted(filter(None, self.by_split))

    def class_counts(self, workers: int = 0, watch: Watch = unwatched) -> Counter[str]:
        """How many objects of each name there are, in the order of the categories. Nothing of it can be shared out.

        Raises:
            DataError: a file cannot be read.
        """
        counts: Counter[str] = Counter()
        paths = self._of(None)
        for number, path in enumerate(paths, start=1):
            content = read_file(self.tree.path(path))
            names = category_names(content)
            used = Counter(names.get(id_of(item.get("category_id"))) for item in objects_in(content).items)
            counts.update({name: used[name] for name in names.values() if used[name]})
            watch(number, len(paths))
        return counts

    def _of(self, split: str | None) -> list[str]:
        """The JSON files of a split, or of all.

        Raises:
            DataError: there are several that may be meant.
        """
        paths = self.by_split.get("", []) if split is None and not self.splits() else self.by_split.get(split or "", [])
        if split is None and self.splits():
            paths = [path for name in self.splits() for path in self.by_split[name]]
        elif len(paths) > 1 and not split:
            raise DataError(f"{self.tree.folder}: any of {', '.join(paths)} may be meant; name the file itself in path")
        return [self.base + path for path in paths]

    def entries(self, split: str | None, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[Entry]:
        """The photos of a split; arguments as in `data.layouts.find.Layout`.

        Raises:
            DataError: a JSON file cannot be used, or a photo is in it twice.
        """
        paths = self._of(split)
        if not paths:
            raise DataError(f"{self.tree.folder}: has no JSON file with images, annotations and categories")
        if self.splits() and self.by_split.get(""):
            notes.append(f"{self.tree.path(self.by_split[''][0])}: belongs to no split, and was left out")
        listed = [entry for path in paths for entry in self._entries_of(path, split or "", labels, ignore_others, notes)]
        twice = [photo for photo, count in Counter(entry.photo for entry in listed if entry.photo).items() if count > 1]
        if twice:
            raise DataError(f"{twice[0]}: {len(twice)} such photos stand twice in {', '.join(paths)}; join their entries")
        self._tell_bare(split, [entry.photo for entry in listed if entry.photo], notes)
        return listed

    def _tell_bare(self, split: str | None, listed: list[Path], notes: list[str]) -> None:
        """Counts the photos that no file lists, as far as the files of other splits cannot list them."""
        is_whole = len(self._of(split)) == len(self.tree.of(".json") if self.is_file else self.files)
        known = set(listed)
        bare = [
            photo
            for photo in self.tree.photos
            if (is_whole or (split and same_split(split_of(posixpath.dirname(photo)) or "-", split_of(split))))
            and self.tree.path(photo) not in known
        ]
        if bare:
            what = f"{self.tree.path(bare[0])}: is in no list of images; {len(bare)} such photos were left out"
            notes.append(counted(what, len(bare), len(bare) + len(listed)))

    def _entries_of(
        self, path: str, split: str, labels: Mapping[str, int], ignore_others: bool, notes: list[str]
    ) -> list[Entry]:
        """The photos of one JSON file."""
        where = self.tree.path(path)
        content = read_file(where)
        categories = category_names(content)
        objects: dict[Hashable, list[dict[str, Any]]] = {id_of(image["id"]): [] for image in content["images"]}
        found = objects_in(content)
        orphans = 0
        for item in found.items:
            owner = objects.get(id_of(item.get("image_id")))
            if owner is None:
                orphans += 1
            else:
                owner.append(item)
        if orphans and orphans == len(found.items):
            raise DataError(f"{where}: no annotation has the image_id of a listed image")
        if orphans:
            notes.append(f"{where}: {orphans} annotations are of images that are not listed, and were left out")
        if found.num_crowds:
            notes.append(
                f"{where}: {found.num_crowds} regions of crowds (iscrowd) are no single objects, and were left out; if "
                "they are, write iscrowd: 0"
            )
        if found.num_marked:
            notes.append(
                f"{where}: {found.num_marked} of {len(content['annotations'])} annotations are marked as crowds (iscrowd), as "
                "CVAT marks every mask; they were taken as single objects. If they are regions of many, take them out"
            )
        listed, num_empty = [], 0
        finder = _PhotoFinder(self.tree, self.by_name, path, split)
        for image in content["images"]:
            name = composed(str(image["file_name"]))
            photo, fault = finder.find(name)
            read = partial(to_annotation, where, image, objects[id_of(image["id"])], categories, labels, ignore_others)
            num_empty += not objects[id_of(image["id"])]
            listed.append(Entry(name, self.tree.path(photo) if photo else None, fault, read))
        if num_empty:
            what = f"{num_empty} of {len(listed)} images have no annotation, and count as photos without objects"
            notes.append(counted(f"{where}: {what}", num_empty, len(listed)))
        return listed


class _PhotoFinder:
    """Finds the photos that one JSON file names, wherever its tool thought that they lie.

    Args:
        tree: the files of the folder.
        by_name: its photos by file name in lower case.
        path: of the JSON file in it.
        split: that the file is of, if any.
    """

    def __init__(self, tree: Tree, by_name: Mapping[str, list[str]], path: str, split: str) -> None:
        self.tree, self.by_name, self.path = tree, by_name, path
        self.split = split_of(split) or split_of(posixpath.dirname(path))
        self.photos = frozenset(tree.photos)
        self.prefix: str | None = None  # that led from the last name to its photo

    def find(self, name: str) -> tuple[str | None, str]:
        """The photo of a name; or None, and what is wrong."""
        name = name.replace("\\", "/")
        if self.prefix is not None and self.prefix + name in self.photos:
            return self.prefix + name, ""
        candidates = self.by_name.get(posixpath.basename(name).casefold(), [])
        fitting = [photo for photo in candidates if same_split(split_of(posixpath.dirname(photo)), self.split)]
        if len(fitting) > 1:  # the more of the path agrees the better; then those beside the file
            here = posixpath.dirname(self.path)
            ranks = {photo: (_shared_end(photo, name), posixpath.dirname(photo) == here) for photo in fitting}
            fitting = [photo for photo in fitting if ranks[photo] == max(ranks.values())]
        if len(fitting) > 1:
            return None, f"{self.tree.path(fitting[0])}: {fitting[1]} may be meant as well, by {name} in {self.path}"
        if not fitting:
            unread = passed_over(self.tree.others)
            hint = f" ({unread})" if unread else ""
            return None, f"{self.tree.path(name)}: no such photo, named in {self.tree.path(self.path)}{hint}"
        if fitting[0].endswith(name):
            self.prefix = fitting[0].removesuffix(name)
        return fitting[0], ""


def _shared_end(one: str, other: str) -> int:
    """How many names at the end two paths share."""
    count = 0
    for a, b in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if a.casefold() != b.casefold():
            break
        count += 1
    return count


def _split_name(path: str) -> str:
    """The split that a JSON file is of: by its name (instances_train2017.json), or else by its folder
    (train/_annotations.coco.json)."""
    stem = re.sub(r"^instances_", "", stem_of(path))
    if any(role(word) not in ("", "all") for word in words(stem)):
        return stem
    return split_of(posixpath.dirname(path))


def _count(path: Path, text: str) -> int:
    """How often a text occurs in a file, about."""
    codes = [text.encode(code) for code in ENCODINGS]
    with open(path, "rb") as file:
        return sum(max(map(block.count, codes)) for block in iter(lambda: file.read(1 << 24), b""))
