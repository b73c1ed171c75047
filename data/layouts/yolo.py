"""Data sets in YOLO's layout: a text file a photo, with class, centre and size, relative to the photo."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from data.annotation import DataError
from data.inspection import Watch, tally, unwatched
from data.layouts.tree import Pairs, Tree, key_of, pair, split_of, stem_of
from data.layouts.yolo_labels import is_labels, numbers_in, read_labels, read_text
from data.listing import Entry
from data.splits import role
from ssd.system.images import SUFFIXES

NUM_JUDGED = 20  # files by which a layout is recognised
NAME_FILES = ("classes.txt", "_classes.txt", "obj.names", "classes.names", "_darknet.labels")
ENTRIES = ("train", "val", "test")  # of data.yaml: where the photos of each split are


class Yolo:
    """A folder with a text file a photo, wherever they lie; splits by data.yaml, by lists of photos, or by folders."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    @cached_property
    def pairs(self) -> Pairs:
        """Label files and their photos. A list of photos may have the name of one, of train.jpg say."""
        texts = [path for path in self.tree.of(".txt") if posixpath.basename(path) not in NAME_FILES]
        return pair([path for path in texts if not (role(stem_of(path)) and self._listed(path))], self.tree.photos)

    @cached_property
    def texts(self) -> dict[str, str]:
        """The label file of each photo that has one."""
        return {photo: path for path, mates in self.pairs.photos.items() for photo in mates}

    @cached_property
    def settings(self) -> tuple[str, dict[str, Any]]:
        """The data.yaml and its content, of several the one highest up; empty where there is none.

        Raises:
            DataError: it cannot be understood.
        """
        for path in sorted(self.tree.of(".yaml", ".yml"), key=lambda path: (path.count("/"), path)):
            text = read_text(self.tree.path(path))
            if "names" not in text:
                continue
            try:
                # All scalars as they are written: the class `no` is no truth value, 007 no number.
                content = yaml.load(text, yaml.BaseLoader)
            except yaml.YAMLError as error:
                raise DataError(f"{self.tree.path(path)}: cannot be read ({' '.join(str(error).split())})") from None
            if isinstance(content, dict) and "names" in content:
                return path, content
        return "", {}

    @cached_property
    def names(self) -> dict[int, str]:
        """The name of each number; empty where no file tells.

        Raises:
            DataError: a file cannot be understood, or two of them disagree.
        """
        path, content = self.settings
        if path:
            return numbered(content["names"], self.tree.path(path))
        found: dict[int, tuple[str, str]] = {}
        for path in self.tree.of(".txt", ".names", ".labels"):
            if posixpath.basename(path) in NAME_FILES:
                for number, name in numbered(read_text(self.tree.path(path)).splitlines(), self.tree.path(path)).items():
                    known, where = found.setdefault(number, (name, path))
                    if known != name:
                        raise DataError(
                            f"{self.tree.path(path)}: class {number} is {name!r}, but {known!r} in {where}; write a data.yaml "
                            "with the names that hold, or take one of the files away"
                        )
        return {number: name for number, (name, _) in sorted(found.items())}

    @cached_property
    def num_keypoints(self) -> tuple[int, int] | None:
        """Keypoints of an object and numbers of each, where data.yaml says that there are any."""
        path, content = self.settings
        try:
            count, size = (int(value) for value in content["kpt_shape"])
            return count, size
        except KeyError:
            return None
        except (TypeError, ValueError):
            raise DataError(f"{self.tree.path(path)}: kpt_shape: expected two numbers, got {content['kpt_shape']}") from None

    @cached_property
    def photos(self) -> list[str]:
        """The photos of the data set: not those that merely lie beside it, as pictures of a report do."""
        folders = {posixpath.dirname(photo) for photo in self.texts}
        tops = {folder.split("/")[0] for folder in folders if folder}
        return [
            photo
            for photo in self.tree.photos
            if posixpath.dirname(photo) in folders or photo.split("/")[0] in tops or split_of(posixpath.dirname(photo))
        ]

    @cached_property
    def by_split(self) -> dict[str, list[str]]:
        """The photos of each split."""
        found: dict[str, list[str]] = {}
        for photo in self.photos:
            split = split_of(posixpath.dirname(photo))
            if split:
                found.setdefault(split, []).append(photo)
        lists = {stem_of(path): self._listed(path) for path in self.tree.of(".txt") if role(stem_of(path))}
        told = {name: photos for name, photos in lists.items() if photos}
        told |= {name: photos for name in ENTRIES if (photos := self._of_settings(name))}
        if told.get("train") and set(told.get("val", ())) == set(told["train"]):
            del told["val"]  # a place holder: tools that divide nothing name the same folder twice
        roles = {role(name) for name in told}
        return {name: photos for name, photos in found.items() if role(name) not in roles} | told

    def _of_settings(self, name: str) -> list[str]:
        """The photos that an entry of data.yaml names: folders or lists, relative to it or to its `path`; or from where the
        tool thought that the data set would be, as far as that can be found."""
        path, content = self.settings
        here = posixpath.dirname(path)
        photos: list[str] = []
        value = content.get(name)
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, str) or not each.strip():
                continue
            place = self._find(here, str(content.get("path") or ""), each.strip().replace("\\", "/"))
            if place is None:
                continue
            inside = f"{place}/" if place else ""
            photos += (
                self._listed(place) if place.endswith(".txt") else [one for one in self.tree.photos if one.startswith(inside)]
            )
        return photos

    def _find(self, here: str, base: str, name: str) -> str | None:
        """The folder or list in the tree that data.yaml means."""
        for start in (posixpath.join(here, base, name), posixpath.join(here, name)):
            place = posixpath.normpath(start)
            while True:
                if place == ".":
                    return ""
                if place in self._folders or place in self.tree.files.get(".txt", ()):
                    return place
                first, _, rest = place.lstrip("/").partition("/")
                if not rest or split_of(first):
                    break
                place = rest
        return None

    @cached_property
    def _folders(self) -> set[str]:
        """All folders with a photo in or below them."""
        folders: set[str] = set()
        for folder in {posixpath.dirname(photo) for photo in self.tree.photos}:
            while folder and folder not in folders:
                folders.add(folder)
                folder = posixpath.dirname(folder)
        return folders

    def _listed(self, path: str) -> list[str]:
        """The photos that a text file lists, one a line; none if it is no such list."""
        lines = [line.strip().replace("\\", "/") for line in read_text(self.tree.path(path)).splitlines() if line.strip()]
        if not lines or not lines[0].lower().endswith(SUFFIXES):
            return []
        return [photo for line in dict.fromkeys(lines) if (photo := self._photo(posixpath.dirname(path), line))]

    def _photo(self, here: str, line: str) -> str | None:
        """The photo that a line of a list means: from the folder or the list on, or as much of the path as is there."""
        parts = [part for part in line.split("/") if part not in ("", ".", "..")]
        for i in range(len(parts)):
            tail = "/".join(parts[i:])
            for photo in (tail, posixpath.join(here, tail)):
                if photo in self._photo_set:
                    return photo
        return None

    @cached_property
    def _photo_set(self) -> frozenset[str]:
        return frozenset(self.tree.photos)

    def num_annotated(self) -> float:
        paths = list(self.pairs.photos)
        if any(is_labels(self.tree.path(path)) for path in paths[:: len(paths) // NUM_JUDGED + 1]):
            return len(paths)
        return 0.5 if any("labels" in path.split("/")[:-1] for path in self.tree.of(".txt")) else 0

    def splits(self) -> list[str]:
        return sorted(self.by_split)

    def class_counts(self, workers: int = 0, watch: Watch = unwatched) -> Counter[str]:
        """How many objects of each name there are, in the order of their numbers; what cannot be read counts as none."""
        numbers = tally(list(self.pairs.photos), partial(numbers_in, self.tree.folder), workers, watch)
        # Without names every number has to keep its place.
        names = self.names or {number: f"class {number}" for number in range(max(numbers, default=-1) + 1)}
        counts: Counter[str] = Counter()
        for number, name in names.items():
            if numbers[number] or not self.names:
                counts[name] += numbers[number]
        return counts

    def entries(self, split: str | None, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[Entry]:
        """The photos of a split; arguments as in `data.layouts.find.Layout`. A photo without a text file has no object.

        Raises:
            DataError: a file of names cannot be used.
        """
        photos = self.photos if split is None else self.by_split[split]
        self._tell_left_out(notes)
        names = self.names or dict(enumerate(labels))
        listed, seen = [], {}
        for photo in photos:
            text = self.texts.get(photo)
            path = self.tree.path(text) if text else None
            read = partial(read_labels, path, names, labels, ignore_others, self.num_keypoints)
            twin = seen.setdefault(text or photo, photo)
            fault = ""
            if twin != photo:
                fault = f"{self.tree.path(twin)}: {posixpath.basename(photo)} has the same name; remove or rename one of them"
            listed.append(Entry(key_of(photo), None if fault else self.tree.path(photo), fault, read))
        return listed

    def _tell_left_out(self, notes: list[str]) -> None:
        """Says which photos and label files of the folder are not used."""
        folders = {posixpath.dirname(path) for path in self.pairs.photos}
        lonely = [path for path in self.pairs.lonely if posixpath.dirname(path) in folders and is_labels(self.tree.path(path))]
        strays = len(self.tree.photos) - len(self.photos)
        for paths, said in ((lonely, "has no photo"), (self.pairs.doubles, "its photo has another label file")):
            if paths:
                notes.append(f"{self.tree.path(paths[0])}: {said}; {len(paths)} such files were left out")
        if strays:
            notes.append(f"{self.tree.folder}: {strays} photos lie where no photo has labels, and were left out")


def numbered(names: object, path: Path) -> dict[int, str]:
    """The name of each number, from a list or a mapping; blank names leave their number without one.

    Raises:
        DataError: it is neither, or has keys that are no numbers.
    """
    pairs: Iterable[tuple[object, object]]
    if isinstance(names, Mapping):
        pairs = names.items()
    elif isinstance(names, Sequence) and not isinstance(names, str):
        pairs = enumerate(names)
    else:
        raise DataError(f"{path}: names: expected a list, or a mapping from numbers, got {names!r}")
    try:
        found = {int(str(number)): str(name).strip() for number, name in pairs}
    except ValueError:
        raise DataError(f"{path}: names: expected numbers as keys, got {', '.join(map(str, names))}") from None
    return {number: name for number, name in sorted(found.items()) if name}
