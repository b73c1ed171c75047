"""Data sets in YOLO's layout: a text file a photo, with class, centre and size, relative to the photo."""

import posixpath
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any

from data.dataset.annotation import DataError
from data.dataset.inspection import Watch, count_files, unwatched
from data.dataset.listing import Entry, counted
from data.dataset.splits import role
from data.layouts.named import read_settings
from data.layouts.tree import Pairs, Tree, key_of, pair, split_of
from data.layouts.yolo_labels import is_labels, numbered_lines, numbers_in, read_labels, read_text, resembles_labels
from data.layouts.yolo_names import NAME_FILES, names_in_notes, names_in_settings, numbered
from data.layouts.yolo_splits import NamedSplits, Split, photo_lists

NUM_JUDGED = 20  # files by which a layout is recognised
MAX_UNUSED = 100  # numbers without an object, below the highest, where no file has names; of COCO's 80 any may be used


class Yolo:
    """A folder with a text file a photo, wherever they lie; splits by data.yaml, by lists of photos, or by folders."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    @cached_property
    def pairs(self) -> Pairs:
        """Label files and their photos. A list of photos may have the name of one, of train.jpg say."""
        others = {*photo_lists(self.tree), *(path for path in self.tree.of(".txt") if posixpath.basename(path) in NAME_FILES)}
        return pair([path for path in self.tree.of(".txt") if path not in others], self.tree.photos)

    @cached_property
    def texts(self) -> dict[str, str]:
        """The label file of each photo that has one."""
        return {photo: path for path, mates in self.pairs.photos.items() for photo in mates}

    @cached_property
    def settings(self) -> tuple[str, dict[str, Any]]:
        """The data.yaml and its content, of several the one named or highest up; empty where there is none.

        Raises:
            DataError: it cannot be understood.
        """
        return next(self._all_settings(), ("", {}))

    def _all_settings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each data.yaml and its content; where there is one, files beside it that cannot be understood may be of another kind.

        Raises:
            DataError: there is none but one that cannot be understood.
        """
        is_first = True
        found = sorted(self.tree.of(".yaml", ".yml"), key=lambda path: (path.count("/"), path))
        for path in [self.tree.named] if self.tree.named else found:
            try:
                content = read_settings(self.tree.path(path)) if "names" in read_text(self.tree.path(path)) else {}
            except DataError:
                if is_first:
                    raise
                continue
            if "names" in content:
                is_first = False
                yield path, content

    @cached_property
    def names(self) -> dict[int, str]:
        """The name of each number; empty where no file tells.

        Raises:
            DataError: a file cannot be understood, or two of them disagree.
        """
        found: dict[int, tuple[str, str]] = {}
        settings, content = self.settings
        for path, names in self._named():
            for number, name in names.items():
                if settings and path != settings and number not in found and number >= len(content["names"]):
                    raise DataError(
                        f"{self.tree.path(path)}: class {number} is {name!r}, and {settings} has no such class; mend the one "
                        "that is wrong, or take it away"
                    )
                known, where = found.setdefault(number, (name, path))
                if known != name:
                    raise DataError(
                        f"{self.tree.path(path)}: class {number} is {name!r}, but {known!r} in {where}; mend the one that is "
                        "wrong, or take it away"
                    )
        for path, count, _ in self._darknet:
            if count and found and count not in (str(len(found)), str(max(found) + 1)):
                said = f"says classes = {count}, but there are names of {len(found)}; mend the one that is wrong"
                raise DataError(f"{self.tree.path(path)}: {said}")
        return {number: name for number, (name, _) in sorted(found.items())}

    @cached_property
    def _darknet(self) -> list[tuple[str, str, str]]:
        """Each of darknet's settings (obj.data): path, number of classes, and name of the file with their names, where told."""
        found = []
        for path in self.tree.of(".data"):
            said = dict(re.findall(r"^\s*(classes|names)\s*=\s*0*(\S+)", read_text(self.tree.path(path), strict=False), re.M))
            found.append((path, said.get("classes", ""), posixpath.basename(said.get("names", "").replace("\\", "/"))))
        return found

    def _named(self) -> Iterator[tuple[str, dict[int, str]]]:
        """Each file of names, and the name of each number in it."""
        for path, content in self._all_settings():
            yield path, names_in_settings(content, self.tree.path(path))
        name_files = {*NAME_FILES, *(name for *_, name in self._darknet)}
        for path in self.tree.of(".txt", ".names", ".labels"):
            if posixpath.basename(path) in name_files:
                yield path, numbered(read_text(self.tree.path(path)).splitlines(), self.tree.path(path))
        for path in self.tree.of(".json"):
            if posixpath.basename(path) == "notes.json":
                yield path, names_in_notes(self.tree.path(path))

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
            shown = reprlib.repr(content["kpt_shape"])
            raise DataError(f"{self.tree.path(path)}: kpt_shape: expected two numbers, got {shown}") from None

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
    def by_split(self) -> dict[str, Split]:
        """The splits: those that files name, and folders of other ones."""
        found: dict[str, Split] = {}
        for photo in self.photos:
            split = split_of(posixpath.dirname(photo))
            if split:
                found.setdefault(split, Split([], [], [])).photos.append(photo)
        named = NamedSplits(self.tree, *self.settings).read()
        roles = {role(name) for name in named}
        return {name: split for name, split in found.items() if role(name) not in roles} | named

    def num_annotated(self) -> float:
        paths = list(self.pairs.photos)
        judged = [self.tree.path(path) for path in paths[:: len(paths) // NUM_JUDGED + 1]]
        if any(map(is_labels, judged)):
            return len(paths)
        if any(map(resembles_labels, judged)):
            return 0.75
        if not any("labels" in path.split("/")[:-1] for path in self.tree.of(".txt")):
            return 0
        return 0.75 if any(read_text(path, strict=False).strip() for path in judged) else 0.5

    def splits(self) -> list[str]:
        return sorted(self.by_split)

    def class_counts(self, workers: int = 0, watch: Watch = unwatched) -> Counter[str]:
        """How many objects of each name there are, in the order of their numbers; what cannot be read counts as none.

        Raises:
            DataError: a file of names cannot be used; or there is none, and a number is likely to be wrong.
        """
        numbers = count_files([str(self.tree.path(path)) for path in self.pairs.photos], numbers_in, workers, watch)
        names = self.names or self._unnamed(numbers)
        counts: Counter[str] = Counter()
        for number, name in names.items():
            if numbers[number] or not self.names:
                counts[name] += numbers[number]
        return counts

    def _unnamed(self, numbers: Mapping[int, int]) -> dict[int, str]:
        """Names where no file has any: every number up to the highest has to keep its place."""
        highest = max(numbers, default=-1)
        unused = highest + 1 - sum(number >= 0 for number in numbers)
        if unused > MAX_UNUSED:
            lines = ((path, *line) for path in self.pairs.photos for line in numbered_lines(self.tree.path(path)))
            path, row = next((path, row) for path, row, number in lines if number == highest)
            raise DataError(
                f"{self.tree.path(path)}: line {row}: class {highest}, where {unused} lower numbers have no object and no file "
                "has names; mend the number, or write a data.yaml with the names"
            )
        return {number: f"class {number}" for number in range(highest + 1)}

    def entries(self, split: str | None, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[Entry]:
        """The photos of a split; arguments as in `data.layouts.find.Layout`. A photo without a text file has no object.

        Raises:
            DataError: a file of names cannot be used, or what names the split.
        """
        chosen = Split(self.photos, [], []) if split is None else self.by_split[split]
        if chosen.faults:
            raise DataError("\n".join(chosen.faults))
        notes += chosen.notes
        self._tell_left_out(split, chosen.photos, notes)
        names = self.names or dict(enumerate(labels))
        listed, seen = [], {}
        for photo in chosen.photos:
            text = self.texts.get(photo)
            path = self.tree.path(text) if text else None
            read = partial(read_labels, path, names, labels, ignore_others, self.num_keypoints)
            twin = seen.setdefault(text or photo, photo)
            fault = ""
            if twin != photo:
                fault = f"{self.tree.path(twin)}: {posixpath.basename(photo)} has the same name; remove or rename one of them"
            listed.append(Entry(key_of(photo), None if fault else self.tree.path(photo), fault, read))
        return listed

    def _tell_left_out(self, split: str | None, photos: list[str], notes: list[str]) -> None:
        """Says which of the photos have no labels, and which photos and label files of the folder are not used."""
        bare = [photo for photo in photos if photo not in self.texts]
        if bare:
            what = f"{len(bare)} of {len(photos)} photos have no label file, and count as photos without objects"
            notes.append(counted(f"{self.tree.path(bare[0])}: {what}", len(bare), len(photos)))
        lonely = [path for path in self.pairs.lonely if is_labels(self.tree.path(path))]
        strays = len(self.tree.photos) - len(self.photos)
        for paths, said in ((lonely, "has no photo"), (self.pairs.doubles, "its photo has another label file")):
            if paths:
                what = f"{self.tree.path(paths[0])}: {said}; {len(paths)} such files were left out"
                notes.append(counted(what, len(paths), len(paths) + len(self.pairs.photos)))
        if strays:
            notes.append(f"{self.tree.folder}: {strays} photos lie where no photo has labels, and were left out")
        if split is not None:
            outside = len(set(self.texts).difference(*(each.photos for each in self.by_split.values())))
            if outside:
                notes.append(f"{self.tree.folder}: {outside} photos with labels are in no split, and were left out")
