"""Which photos the lists of a data set in YOLO's layout, and the entries of its data.yaml, name for each split."""

import posixpath
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from data.dataset.listing import composed, unquoted
from data.dataset.splits import role
from data.layouts.named import ENTRIES, places_in
from data.layouts.tree import Tree, split_of, stem_of
from data.layouts.yolo_labels import read_text
from ssd.system.images import SUFFIXES


class Split(NamedTuple):
    """The photos of one split."""

    photos: list[str]
    notes: list[str]  # what it names besides
    faults: list[str]  # why it cannot be used, a line for each


NOTHING = Split([], [], [])


class NamedSplits:
    """The splits that a folder's files name.

    Args:
        tree: the folder.
        path: of its data.yaml; empty if there is none.
        content: of that file.
    """

    def __init__(self, tree: Tree, path: str, content: Mapping[str, Any]) -> None:
        self.tree, self.path, self.content = tree, path, content

    def read(self) -> dict[str, Split]:
        """Each split by its name; where lists and data.yaml name the same one, data.yaml holds."""
        named = {stem_of(path): self._listed(path) for path in photo_lists(self.tree)}
        named |= {name: self._of_settings(name) for name in ENTRIES if places_in(self.content, name)}
        if set(self.tree.photos) <= {photo for split in named.values() for photo in split.photos}:
            # Exporters name splits that they leave empty. Where photos are in none, it is more likely to be misspelt.
            for name in [name for name, split in named.items() if split.faults and not split.photos and role(name) != "train"]:
                dropped = named.pop(name)
                if role(name) != "test":  # which nobody may ask for
                    for split in named.values():
                        split.notes.extend(dropped.faults)
        train, val = (named.get(name, NOTHING) for name in ("train", "val"))
        if val.photos and set(val.photos) == set(train.photos):
            del named["val"]  # a place holder: tools that divide nothing name the same folder twice
        return named

    def _of_settings(self, name: str) -> Split:
        """The photos that an entry of data.yaml names: folders or lists, relative to it or to its `path`; or from where the
        tool thought that the data set would be, as far as that can be found."""
        split = Split([], [], [])
        for each in map(composed, places_in(self.content, name)):
            place = self._find(each)
            if place is None:
                remedy = "mend the entry, or remove it"
                split.faults.append(f"{self.tree.path(self.path)}: {name}: {each}: no such folder or list of photos; {remedy}")
            elif place.endswith(".txt"):
                for mine, more in zip(split, self._listed(place), strict=True):
                    mine += more
            else:
                inside = f"{place}/" if place else ""
                split.photos.extend(photo for photo in self.tree.photos if photo.startswith(inside))
        return split._replace(photos=list(dict.fromkeys(split.photos)))

    def _find(self, name: str) -> str | None:
        """The folder or list in the tree that data.yaml means."""
        with suppress(ValueError):  # an absolute path into the data set
            inside = Path(name).relative_to(self.tree.folder.absolute()).as_posix().removeprefix(".")
            if not inside or self._is_there(inside):
                return inside
        here = posixpath.dirname(self.path)
        base = str(self.content.get("path") or "")
        # Where data.yaml was named itself, the folder is the one that its `path` leads to.
        starts = [name] if self.tree.named else [posixpath.join(here, base, name), posixpath.join(here, name)]
        for start in starts:
            place = posixpath.normpath(start)
            while True:
                if place == ".":
                    return ""
                if self._is_there(place):
                    return place
                first, _, rest = place.lstrip("/").partition("/")
                if not rest or (split_of(first) and not split_of(rest)):
                    break
                place = rest
        return None

    def _is_there(self, place: str) -> bool:
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
        """The photos that a text file lists, one a line."""
        where = self.tree.path(path)
        lines = _lines(self.tree, path)
        here = posixpath.dirname(path)
        photos = {line: self._photo(here, line) or self._photo(here, unquoted(line)) for line in lines}
        found = list(dict.fromkeys(filter(None, photos.values())))
        strangers = [line for line in lines if not photos[line]]
        if not found:
            example = f" ({strangers[0]}, ...)" if strangers else ""
            remedy = "mend the lines, or remove the file"
            return Split([], [], [f"{where}: none of its {len(lines)} lines names a photo{example}; {remedy}"])
        note = f"{where}: {len(strangers)} of {len(lines)} lines name no photo, and were left out"
        return Split(found, [note] if strangers else [], [])

    def _photo(self, here: str, line: str) -> str | None:
        """The photo that a line of a list means: from the folder or the list on, or as much of the path as is there."""
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


def photo_lists(tree: Tree) -> list[str]:
    """The text files that list the photos of a split: they have its name, and that of a photo in their first line."""
    return [
        path
        for path in tree.of(".txt")
        if role(stem_of(path)) and any(unquoted(line).lower().endswith(SUFFIXES) for line in _lines(tree, path)[:1])
    ]


def _lines(tree: Tree, path: str) -> list[str]:
    """The lines of a text file that are not blank."""
    lines = read_text(tree.path(path)).splitlines()
    return [composed(line.strip()) for line in lines if line.strip()]
