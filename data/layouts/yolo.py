"""YOLO: a text file per photo, with class, centre and size per line, relative to the photo."""

import posixpath
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any

from data.dataset.entry import PhotoEntry, warn_if_most
from data.dataset.errors import DataError
from data.dataset.parallel_reader import ProgressCallback, count_in_files, no_progress
from data.dataset.splits import role
from data.layouts.format_reader import FormatReader
from data.layouts.pairing import Pairs, group_by, key_of, pair, split_of_file, unique_photo_entry
from data.layouts.source_file import read_data_yaml
from data.layouts.tree import FileTree
from data.layouts.yolo_labels import class_numbers_in, is_labels, numbered_lines, read_labels, read_text, resembles_labels
from data.layouts.yolo_names import NAME_FILES, names_by_number, names_in_data_yaml, names_in_notes
from data.layouts.yolo_splits import Split, SplitFinder, photo_lists

NUM_SAMPLED = 20  # files to look into to recognise the format
MAX_UNUSED = 100  # class numbers without objects, below the highest, if no file has names; COCO's 80 classes may all be unused


class YoloReader(FormatReader):
    """A folder with a text file per photo, in any arrangement. Splits come from data.yaml, lists of photos, or folders."""

    suffixes = (".txt", ".yaml", ".yml", ".names", ".labels", ".data", ".json")
    needs = "a text file per photo, with its name, and a class and four numbers per line (labels/*.txt, or beside the photos)"
    convention = "centre, width and height"
    is_relative = True

    def __init__(self, tree: FileTree) -> None:
        self.tree = tree

    @cached_property
    def pairs(self) -> Pairs:
        """Label files with their photos. Lists of photos and of names are not label files, even beside a train.jpg."""
        others = {*photo_lists(self.tree), *(path for path in self.tree.of(".txt") if posixpath.basename(path) in NAME_FILES)}
        return pair([path for path in self.tree.of(".txt") if path not in others], self.tree.photos)

    @cached_property
    def label_files(self) -> dict[str, str]:
        """The label file of each photo that has one."""
        return {photo: path for path, mates in self.pairs.photos.items() for photo in mates}

    @cached_property
    def data_yaml(self) -> tuple[str, dict[str, Any]]:
        """The data.yaml and its content: the one named, or the highest in the tree; empty if there is none.

        Raises:
            DataError: it cannot be read.
        """
        return next(self._data_yamls(), ("", {}))

    def _data_yamls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each data.yaml with its content. After the first, unreadable files are skipped, as they may be something else.

        Raises:
            DataError: the first one cannot be read.
        """
        is_first = True
        found = sorted(self.tree.of(".yaml", ".yml"), key=lambda path: (path.count("/"), path))
        for path in [self.tree.named] if self.tree.named else found:
            try:
                content = read_data_yaml(self.tree.path(path)) if "names" in read_text(self.tree.path(path)) else {}
            except DataError:
                if is_first:
                    raise
                continue
            if "names" in content:
                is_first = False
                yield path, content

    @cached_property
    def names(self) -> dict[int, str]:
        """The name of each class number; empty if no file has names.

        Raises:
            DataError: a file cannot be read, or two files disagree.
        """
        found: dict[int, tuple[str, str]] = {}
        data_yaml, content = self.data_yaml
        for path, names in self._named():
            for number, name in names.items():
                if data_yaml and path != data_yaml and number not in found and number >= len(content["names"]):
                    raise DataError(
                        f"{self.tree.path(path)}: class {number} is {name!r}, but {data_yaml} has no such class; fix or remove "
                        "the wrong file"
                    )
                known, where = found.setdefault(number, (name, path))
                if known != name:
                    raise DataError(
                        f"{self.tree.path(path)}: class {number} is {name!r}, but {known!r} in {where}; fix or remove the "
                        "wrong file"
                    )
        for path, count, _ in self._darknet:
            if count and found and count not in (str(len(found)), str(max(found) + 1)):
                fault = f"says classes = {count}, but there are {len(found)} names; fix the wrong one"
                raise DataError(f"{self.tree.path(path)}: {fault}")
        return {number: name for number, (name, _) in sorted(found.items())}

    @cached_property
    def _darknet(self) -> list[tuple[str, str, str]]:
        """Darknet's settings files (obj.data): path, number of classes, and name of the file with class names, if given."""
        found = []
        for path in self.tree.of(".data"):
            text = read_text(self.tree.path(path), strict=False)
            entries = dict(re.findall(r"^\s*(classes|names)\s*=\s*0*(\S+)", text, re.M))
            found.append((path, entries.get("classes", ""), posixpath.basename(entries.get("names", "").replace("\\", "/"))))
        return found

    def _named(self) -> Iterator[tuple[str, dict[int, str]]]:
        """Yield each file with class names, and its names by number."""
        for path, content in self._data_yamls():
            yield path, names_in_data_yaml(content, self.tree.path(path))
        name_files = {*NAME_FILES, *(name for *_, name in self._darknet)}
        for path in self.tree.of(".txt", ".names", ".labels"):
            if posixpath.basename(path) in name_files:
                yield path, names_by_number(read_text(self.tree.path(path)).splitlines(), self.tree.path(path))
        for path in self.tree.of(".json"):
            if posixpath.basename(path) == "notes.json":
                yield path, names_in_notes(self.tree.path(path))

    @cached_property
    def num_keypoints(self) -> tuple[int, int] | None:
        """Number of keypoints per object, and of values per keypoint, if data.yaml says so."""
        path, content = self.data_yaml
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
        """The photos of the folder, without pictures that merely lie beside it, such as those of a report."""
        folders = {posixpath.dirname(photo) for photo in self.label_files}
        tops = {folder.split("/")[0] for folder in folders if folder}
        return [
            photo
            for photo in self.tree.photos
            if posixpath.dirname(photo) in folders or photo.split("/")[0] in tops or split_of_file(photo)
        ]

    @cached_property
    def by_split(self) -> dict[str, Split]:
        """The splits that files name, and those of folders with other roles."""
        in_folders = group_by(self.photos, split_of_file)
        named = SplitFinder(self.tree, *self.data_yaml).find()
        roles = {role(name) for name in named}
        others = {name: Split(photos, [], []) for name, photos in in_folders.items() if name and role(name) not in roles}
        return others | named

    def num_annotated(self) -> float:
        paths = list(self.pairs.photos)
        sampled = [self.tree.path(path) for path in paths[:: len(paths) // NUM_SAMPLED + 1]]
        if any(map(is_labels, sampled)):
            return len(paths)
        if any(map(resembles_labels, sampled)):
            return 0.75
        if not any("labels" in path.split("/")[:-1] for path in self.tree.of(".txt")):
            return 0
        return 0.75 if any(read_text(path, strict=False).strip() for path in sampled) else 0.5

    def splits(self) -> list[str]:
        return sorted(self.by_split)

    def class_counts(self, workers: int = 0, progress: ProgressCallback = no_progress) -> Counter[str]:
        """Return the number of objects per class name, in the order of the numbers. Unreadable lines are skipped.

        Raises:
            DataError: a file of names cannot be used; or there is none, and a number is probably wrong.
        """
        numbers = count_in_files([str(self.tree.path(path)) for path in self.pairs.photos], class_numbers_in, workers, progress)
        names = self.names or self._default_names(numbers)
        counts: Counter[str] = Counter()
        for number, name in names.items():
            if numbers[number] or not self.names:
                counts[name] += numbers[number]
        return counts

    def _default_names(self, numbers: Mapping[int, int]) -> dict[int, str]:
        """Return names for all numbers up to the highest, since a number is a class's position."""
        highest = max(numbers, default=-1)
        unused = highest + 1 - sum(number >= 0 for number in numbers)
        if unused > MAX_UNUSED:
            lines = ((path, *line) for path in self.pairs.photos for line in numbered_lines(self.tree.path(path)))
            path, row = next((path, row) for path, row, number in lines if number == highest)
            raise DataError(
                f"{self.tree.path(path)}: line {row}: class {highest}, but {unused} lower numbers have no objects and no file "
                "has names; fix the number, or add a data.yaml with names"
            )
        return {number: f"class {number}" for number in range(highest + 1)}

    def entries(self, split: str | None, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[PhotoEntry]:
        """Return the photos of a split; arguments as in `FormatReader`. A photo without a label file has no objects.

        Raises:
            DataError: the files that give class names or the split cannot be used.
        """
        chosen = Split(self.photos, [], []) if split is None else self.by_split[split]
        if chosen.faults:
            raise DataError("\n".join(chosen.faults))
        notes += chosen.notes
        self._note_left_out(split, chosen.photos, notes)
        names = self.names or dict(enumerate(labels))
        entries, first = [], {}
        for photo in chosen.photos:
            label_file = self.label_files.get(photo)
            path = self.tree.path(label_file) if label_file else None
            read = partial(read_labels, path, names, labels, ignore_others, self.num_keypoints)
            same = dict.fromkeys((first.setdefault(label_file or photo, photo), photo))
            entries.append(unique_photo_entry(self.tree, key_of(photo), list(same), read))
        return entries

    def _note_left_out(self, split: str | None, photos: list[str], notes: list[str]) -> None:
        """Add notes about photos without labels, and about photos and label files that are not used."""
        bare = [photo for photo in photos if photo not in self.label_files]
        if bare:
            note = f"{len(bare)} of {len(photos)} photos have no label file and count as photos without objects"
            notes.append(warn_if_most(f"{self.tree.path(bare[0])}: {note}", len(bare), len(photos)))
        unpaired = [path for path in self.pairs.unpaired if is_labels(self.tree.path(path))]
        for paths, reason in ((unpaired, "has no photo"), (self.pairs.doubles, "its photo has another label file")):
            if paths:
                note = f"{self.tree.path(paths[0])}: {reason}; {len(paths)} such files were left out"
                notes.append(warn_if_most(note, len(paths), len(paths) + len(self.pairs.photos)))
        num_stray = len(self.tree.photos) - len(self.photos)
        if num_stray:
            notes.append(f"{self.tree.folder}: {num_stray} photos in folders without labels were left out")
        if split is not None:
            outside = len(set(self.label_files).difference(*(each.photos for each in self.by_split.values())))
            if outside:
                notes.append(f"{self.tree.folder}: {outside} photos with labels belong to no split and were left out")
