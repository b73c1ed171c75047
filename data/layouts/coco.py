"""COCO: JSON files with images, annotations and categories, and the photos anywhere beside them."""

import posixpath
import re
from collections import Counter
from collections.abc import Hashable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data.dataset.entry import PhotoEntry, warn_if_most
from data.dataset.errors import DataError
from data.dataset.names import nfc
from data.dataset.parallel_reader import ProgressCallback, no_progress
from data.dataset.splits import role, words
from data.layouts.coco_file import ENCODINGS, category_names, id_of, is_coco, objects_in, parse_image, read_file
from data.layouts.format_reader import FormatReader
from data.layouts.pairing import group_by, same_split, split_of, split_of_file, stem_of
from data.layouts.tree import FileTree, list_tree
from ssd.system.images import passed_over

MAX_INSPECTED = 50  # JSON files to look into; tools that write one per photo have no other ones
OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")  # COCO's own, beside instances_


class CocoReader(FormatReader):
    """A folder with one JSON file for all photos or one per split, or that JSON file itself."""

    suffixes = (".json",)
    needs = "a JSON file with images, annotations and categories, whose annotations have a bbox or outlines"
    convention = "left, top, width and height"
    is_relative = False

    def __init__(self, tree: FileTree) -> None:
        self.is_file = tree.named.lower().endswith(".json")
        self.files = self._find_files(tree)
        # A JSON file that is named itself may lie in annotations/, beside the photos' folder.
        self.tree = list_tree(tree.folder.parent, self.suffixes) if self.is_file and not tree.photos else tree
        self.base = "" if self.tree is tree else f"{tree.folder.name}/"

    @staticmethod
    def _find_files(tree: FileTree) -> list[str]:
        """Return the JSON files with objects, sorted by name."""
        paths = tree.of(".json")
        if tree.named:
            return [tree.named]
        if len(paths) > MAX_INSPECTED:
            paths = sorted(paths, key=lambda path: (path.count("/"), -tree.path(path).stat().st_size))[:MAX_INSPECTED]
        with_instances = {posixpath.dirname(path) for path in paths if posixpath.basename(path).startswith("instances_")}
        return sorted(
            path
            for path in paths
            if not (posixpath.dirname(path) in with_instances and posixpath.basename(path).startswith(OTHER_TASKS))
            and is_coco(tree.path(path))
        )

    @cached_property
    def by_split(self) -> dict[str, list[str]]:
        """The JSON files of each split; those without a split under an empty name."""
        return group_by(self.files, lambda path: "" if self.is_file else _split_name(path))

    @cached_property
    def photos_by_name(self) -> dict[str, list[str]]:
        """The photos of each file name, ignoring case."""
        return group_by(self.tree.photos, lambda photo: posixpath.basename(photo).casefold())

    def num_annotated(self) -> float:
        return 0.5 * self.is_file + sum(_count_text(self.tree.path(self.base + path), '"file_name"') for path in self.files)

    def splits(self) -> list[str]:
        return sorted(filter(None, self.by_split))

    def class_counts(self, workers: int = 0, progress: ProgressCallback = no_progress) -> Counter[str]:
        """Return the number of objects per class name, in the order of the categories. One process reads all files.

        Raises:
            DataError: a file cannot be read.
        """
        counts: Counter[str] = Counter()
        paths = self._files_of(None)
        for number, path in enumerate(paths, start=1):
            content = read_file(self.tree.path(path))
            names = category_names(content)
            used = Counter(names.get(id_of(item.get("category_id"))) for item in objects_in(content).items)
            counts.update({name: used[name] for name in names.values() if used[name]})
            progress(number, len(paths))
        return counts

    def _files_of(self, split: str | None) -> list[str]:
        """Return the JSON files of a split, or of all.

        Raises:
            DataError: it is not clear which file is meant.
        """
        paths = self.by_split.get("", []) if split is None and not self.splits() else self.by_split.get(split or "", [])
        if split is None and self.splits():
            paths = [path for name in self.splits() for path in self.by_split[name]]
        elif len(paths) > 1 and not split:
            raise DataError(f"{self.tree.folder}: has several COCO files ({', '.join(paths)}); name one of them in path")
        return [self.base + path for path in paths]

    def entries(self, split: str | None, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[PhotoEntry]:
        """Return the photos of a split; arguments as in `FormatReader`.

        Raises:
            DataError: a JSON file cannot be used, or lists a photo twice.
        """
        paths = self._files_of(split)
        if not paths:
            raise DataError(f"{self.tree.folder}: has no JSON file with images, annotations and categories")
        if self.splits() and self.by_split.get(""):
            notes.append(f"{self.tree.path(self.by_split[''][0])}: belongs to no split and was left out")
        listed = [entry for path in paths for entry in self._entries_in(path, split or "", labels, ignore_others, notes)]
        twice = [photo for photo, count in Counter(entry.photo for entry in listed if entry.photo).items() if count > 1]
        if twice:
            raise DataError(f"{twice[0]}: {len(twice)} photos like this one are listed twice in {', '.join(paths)}; merge them")
        self._note_unlisted(split, {entry.photo for entry in listed if entry.photo}, notes)
        return listed

    def _note_unlisted(self, split: str | None, listed: set[Path], notes: list[str]) -> None:
        """Add a note about photos that no file lists. Without all files, only photos in folders of the split count."""
        is_whole = len(self._files_of(split)) == len(self.tree.of(".json") if self.is_file else self.files)
        unlisted = [
            photo
            for photo in self.tree.photos
            if (is_whole or (split and same_split(split_of_file(photo) or "-", split_of(split))))
            and self.tree.path(photo) not in listed
        ]
        if unlisted:
            note = f"{self.tree.path(unlisted[0])}: is not listed under images; {len(unlisted)} such photos were left out"
            notes.append(warn_if_most(note, len(unlisted), len(unlisted) + len(listed)))

    def _entries_in(
        self, path: str, split: str, labels: Mapping[str, int], ignore_others: bool, notes: list[str]
    ) -> list[PhotoEntry]:
        """Return the photos of one JSON file."""
        where = self.tree.path(path)
        content = read_file(where)
        categories = category_names(content)
        objects: dict[Hashable, list[dict[str, Any]]] = {id_of(image["id"]): [] for image in content["images"]}
        found = objects_in(content)
        num_orphans = 0
        for item in found.items:
            owner = objects.get(id_of(item.get("image_id")))
            if owner is None:
                num_orphans += 1
            else:
                owner.append(item)
        if num_orphans and num_orphans == len(found.items):
            raise DataError(f"{where}: no annotation has the image_id of a listed image")
        if num_orphans:
            notes.append(f"{where}: {num_orphans} annotations belong to images that are not listed and were left out")
        if found.num_crowds:
            notes.append(
                f"{where}: {found.num_crowds} crowd regions (iscrowd) are not single objects and were left out; if they are "
                "single objects, write iscrowd: 0"
            )
        if found.num_marked:
            notes.append(
                f"{where}: {found.num_marked} of {len(content['annotations'])} annotations are marked as crowds (iscrowd), as "
                "CVAT marks every mask; they were used as single objects. If they are crowds, remove them"
            )
        listed, num_empty = [], 0
        finder = _PhotoFinder(self.tree, self.photos_by_name, path, split)
        for image in content["images"]:
            name = nfc(str(image["file_name"]))
            photo, fault = finder.find(name)
            read = partial(parse_image, where, image, objects[id_of(image["id"])], categories, labels, ignore_others)
            num_empty += not objects[id_of(image["id"])]
            listed.append(PhotoEntry(name, self.tree.path(photo) if photo else None, fault, read))
        if num_empty:
            note = f"{where}: {num_empty} of {len(listed)} images have no annotation and count as photos without objects"
            notes.append(warn_if_most(note, num_empty, len(listed)))
        return listed


class _PhotoFinder:
    """Finds the photos that the JSON file `path` names, even if its tool had other folders.

    `by_name` has the photos of the tree by file name in lower case; `split` is the file's, if any.
    """

    def __init__(self, tree: FileTree, by_name: Mapping[str, list[str]], path: str, split: str) -> None:
        self.tree, self.by_name, self.path = tree, by_name, path
        self.split = split_of(split) or split_of_file(path)
        self.photos = frozenset(tree.photos)
        self.prefix: str | None = None  # folder in which the last photo was found

    def find(self, name: str) -> tuple[str | None, str]:
        """Return the photo of a name, or None and the fault."""
        name = name.replace("\\", "/")
        if self.prefix is not None and self.prefix + name in self.photos:
            return self.prefix + name, ""
        candidates = self.by_name.get(posixpath.basename(name).casefold(), [])
        fitting = [photo for photo in candidates if same_split(split_of_file(photo), self.split)]
        if len(fitting) > 1:  # prefer a longer common path, then a photo beside the file
            here = posixpath.dirname(self.path)
            ranks = {photo: (_num_common(photo, name), posixpath.dirname(photo) == here) for photo in fitting}
            fitting = [photo for photo in fitting if ranks[photo] == max(ranks.values())]
        if len(fitting) > 1:
            fault = f"{self.tree.path(fitting[0])}: {name} in {self.path} may also mean {fitting[1]}; rename one of them"
            return None, fault
        if not fitting:
            unread = passed_over(self.tree.others)
            hint = f" ({unread})" if unread else ""
            return None, f"{self.tree.path(name)}: no such photo, named in {self.tree.path(self.path)}{hint}"
        if fitting[0].endswith(name):
            self.prefix = fitting[0].removesuffix(name)
        return fitting[0], ""


def _num_common(one: str, other: str) -> int:
    """Return the number of names that two paths share at their ends."""
    count = 0
    for a, b in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if a.casefold() != b.casefold():
            break
        count += 1
    return count


def _split_name(path: str) -> str:
    """Return a JSON file's split: from its name (instances_train2017.json), or else from its folder (train/)."""
    stem = re.sub(r"^instances_", "", stem_of(path))
    if any(role(word) not in ("", "all") for word in words(stem)):
        return stem
    return split_of_file(path)


def _count_text(path: Path, text: str) -> int:
    """Return about how often a text occurs in a file."""
    codes = [text.encode(code) for code in ENCODINGS]
    with open(path, "rb") as file:
        return sum(max(map(block.count, codes)) for block in iter(lambda: file.read(1 << 24), b""))
