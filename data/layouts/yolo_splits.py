"""Splits of a YOLO folder: the photos that lists and the entries of data.yaml name."""

import posixpath
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from data.dataset.names import nfc, strip_quotes
from data.dataset.splits import role
from data.layouts.pairing import clean_lines, split_of, stem_of
from data.layouts.source_file import SPLIT_KEYS, paths_in
from data.layouts.tree import FileTree
from data.layouts.yolo_labels import read_text
from ssd.system.images import SUFFIXES


class Split(NamedTuple):
    """The photos of one split."""

    photos: list[str]
    notes: list[str]  # about lines that do not name a photo
    faults: list[str]  # why the split cannot be used, one line each


NO_SPLIT = Split([], [], [])


class SplitFinder:
    """Finds the splits that a folder's files name. `path` is its data.yaml, empty if it has none; `content` is its content."""

    def __init__(self, tree: FileTree, path: str, content: Mapping[str, Any]) -> None:
        self.tree, self.path, self.content = tree, path, content

    def find(self) -> dict[str, Split]:
        """Return the splits by name. An entry of data.yaml overrides a list of the same name."""
        splits = {stem_of(path): self._listed(path) for path in photo_lists(self.tree)}
        splits |= {key: self._in_data_yaml(key) for key in SPLIT_KEYS if paths_in(self.content, key)}
        if set(self.tree.photos) <= {photo for split in splits.values() for photo in split.photos}:
            # Exporters name splits that are empty. But if some photos are in no split, the name is probably misspelled.
            empty = [name for name, split in splits.items() if split.faults and not split.photos and role(name) != "train"]
            for name in empty:
                dropped = splits.pop(name)
                if role(name) != "test":  # nobody may need a test split
                    for split in splits.values():
                        split.notes.extend(dropped.faults)
        train, val = (splits.get(name, NO_SPLIT) for name in ("train", "val"))
        if val.photos and set(val.photos) == set(train.photos):
            del splits["val"]  # a placeholder: tools that do not split name the same folder twice
        return splits

    def _in_data_yaml(self, key: str) -> Split:
        """Return the photos that an entry of data.yaml names, as folders or lists.

        Paths are relative to the file or to its `path`. Folders of the machine where it was written are ignored.
        """
        split = Split([], [], [])
        for path in map(nfc, paths_in(self.content, key)):
            place = self._find(path)
            if place is None:
                fault = f"{key}: {path}: no such folder or list of photos; fix or remove the entry"
                split.faults.append(f"{self.tree.path(self.path)}: {fault}")
            elif place.endswith(".txt"):
                for mine, more in zip(split, self._listed(place), strict=True):
                    mine += more
            else:
                inside = f"{place}/" if place else ""
                split.photos.extend(photo for photo in self.tree.photos if photo.startswith(inside))
        return split._replace(photos=list(dict.fromkeys(split.photos)))

    def _find(self, path: str) -> str | None:
        """Return the folder or list in the tree that a path in data.yaml means."""
        with suppress(ValueError):  # an absolute path into the folder
            inside = Path(path).relative_to(self.tree.folder.absolute()).as_posix().removeprefix(".")
            if not inside or self._exists(inside):
                return inside
        here = posixpath.dirname(self.path)
        base = str(self.content.get("path") or "")
        # If data.yaml was named itself, the tree is already the folder that its `path` names.
        starts = [path] if self.tree.named else [posixpath.join(here, base, path), posixpath.join(here, path)]
        for start in starts:
            place = posixpath.normpath(start)
            while True:
                if place == ".":
                    return ""
                if self._exists(place):
                    return place
                first, _, rest = place.lstrip("/").partition("/")
                if not rest or (split_of(first) and not split_of(rest)):
                    break
                place = rest
        return None

    def _exists(self, place: str) -> bool:
        return place in self._folders or place in self.tree.files.get(".txt", ())

    @cached_property
    def _folders(self) -> set[str]:
        """All folders with a photo in or below them."""
        folders: set[str] = set()
        for folder in {posixpath.dirname(photo) for photo in self.tree.photos}:
            while folder and folder not in folders:
                folders.add(folder)
                folder = posixpath.dirname(folder)
        return folders

    def _listed(self, path: str) -> Split:
        """Return the photos that a text file lists, one per line."""
        where = self.tree.path(path)
        lines = clean_lines(read_text(where))
        here = posixpath.dirname(path)
        photos = {line: self._photo(here, line) or self._photo(here, strip_quotes(line)) for line in lines}
        found = list(dict.fromkeys(filter(None, photos.values())))
        unknown = [line for line in lines if not photos[line]]
        if not found:
            example = f" ({unknown[0]}, ...)" if unknown else ""
            return Split([], [], [f"{where}: none of its {len(lines)} lines names a photo{example}; fix or remove the file"])
        note = f"{where}: {len(unknown)} of {len(lines)} lines do not name a photo and were left out"
        return Split(found, [note] if unknown else [], [])

    def _photo(self, here: str, line: str) -> str | None:
        """Return the photo that a line means: the longest end of its path that exists in the tree or beside the list."""
        parts = [part for part in line.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        for i in range(len(parts)):
            tail = "/".join(parts[i:])
            for photo in (tail, posixpath.join(here, tail)):
                if photo in self._photos:
                    return photo
        return None

    @cached_property
    def _photos(self) -> frozenset[str]:
        return frozenset(self.tree.photos)


def photo_lists(tree: FileTree) -> list[str]:
    """Return the text files that list the photos of a split: named like a split, with a photo in their first line."""
    return [
        path
        for path in tree.of(".txt")
        if role(stem_of(path))
        and any(strip_quotes(line).lower().endswith(SUFFIXES) for line in clean_lines(read_text(tree.path(path)))[:1])
    ]
