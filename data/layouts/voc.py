"""Data sets with an XML file a photo, as PASCAL VOC has them."""

import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from data.dataset.annotation import DataError
from data.dataset.inspection import Watch, count_files, unwatched
from data.dataset.listing import Entry, composed, counted, unquoted
from data.dataset.splits import role
from data.layouts.tree import Pairs, Tree, key_of, pair, part_of, photo_named, split_of, stem_of
from data.layouts.voc_annotation import is_annotation, names_in, parse_annotation, root_of
from ssd.system.images import SUFFIXES, passed_over

NUM_JUDGED = 20  # files by which a layout is recognised


class Voc:
    """A folder with an XML file a photo, wherever they lie; splits by lists in ImageSets/Main, or by folders."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    @cached_property
    def pairs(self) -> Pairs:
        """Annotation files and their photos; those of no photo's name may name it themselves, as <filename>."""
        pairs = pair(self.tree.of(".xml"), self.tree.photos)
        lonely = [path for path in pairs.lonely if is_annotation(self.tree.path(path))]
        if not lonely:
            return pairs._replace(lonely=[])
        taken = {photo for mates in pairs.photos.values() for photo in mates}
        free = [photo for photo in self.tree.photos if photo not in taken]
        named = {_as_named_within(self.tree, path): path for path in lonely} if free else {}
        more = pair(list(named), free)
        photos = pairs.photos | {named[name]: mates for name, mates in more.photos.items()}
        return Pairs(photos, pairs.doubles, [path for path in lonely if path not in photos])

    @cached_property
    def by_key(self) -> dict[str, str]:
        """The annotation file of each part and name."""
        paths = sorted([*self.pairs.photos, *self.pairs.lonely], reverse=True)
        whole = {key_of(photo_named(path)): path for path in paths if photo_named(path)}  # a.jpg.xml is of a
        return whole | {key_of(path): path for path in paths}

    @cached_property
    def by_photo(self) -> dict[str, list[str]]:
        """The photos of each part and name."""
        found: dict[str, list[str]] = {}
        for photo in self.tree.photos:
            found.setdefault(key_of(photo), []).append(photo)
        return found

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """The annotation files of each name."""
        found: dict[str, list[str]] = {}
        for path in (*self.pairs.photos, *self.pairs.lonely):
            found.setdefault(stem_of(path), []).append(path)
        return found

    @cached_property
    def lists(self) -> dict[str, list[str]]:
        """The files that list the photos of each split: in ImageSets; or elsewhere, by their name and what is in them."""
        found: dict[str, list[str]] = {}
        elsewhere: dict[str, list[str]] = {}
        for path in self.tree.of(".txt"):
            if _base(path) is not None:
                found.setdefault(stem_of(path), []).append(path)
            elif role(stem_of(path)) and any(self.find(path, name) for name in _read_ids(self.tree.path(path))):
                elsewhere.setdefault(stem_of(path), []).append(path)
        return found or elsewhere

    @cached_property
    def in_folders(self) -> dict[str, list[str]]:
        """The annotation files of each split that folders are named by."""
        found: dict[str, list[str]] = {}
        for path, mates in self.pairs.photos.items():
            split = split_of(posixpath.dirname(path)) or split_of(posixpath.dirname(mates[0]))
            found.setdefault(split, []).append(path)
        return {split: paths for split, paths in found.items() if split}

    def num_annotated(self) -> float:
        paths = list(self.pairs.photos)
        if any(is_annotation(self.tree.path(path)) for path in paths[:: len(paths) // NUM_JUDGED + 1]):
            return len(paths)
        names = {name.lower() for path in (*self.tree.photos, *self.tree.of(".xml", ".txt")) for name in path.split("/")[:-1]}
        return 0.5 if names & {"jpegimages", "annotations", "imagesets"} else 0

    def splits(self) -> list[str]:
        names = sorted(self.lists or self.in_folders)
        # VOC has lists of each class as well, cat_train beside train.
        return [name for name in names if not any(name.endswith(f"_{other}") for other in names)]

    def class_counts(self, workers: int = 0, watch: Watch = unwatched) -> Counter[str]:
        """How many objects of each name there are, in the order in which they are met; what cannot be read counts as none."""
        return count_files([str(self.tree.path(path)) for path in sorted(self.pairs.photos)], names_in, workers, watch)

    def entries(self, split: str | None, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[Entry]:
        """The photos of a split; arguments as in `data.layouts.find.Layout`."""
        self._tell_left_out(split, notes)
        if split in self.lists:
            return [entry for path in self.lists[split] for entry in self._of_list(path, labels, ignore_others, notes)]
        paths = self.in_folders[split] if split else [*self.pairs.photos, *self.pairs.lonely]
        return [self._entry(path, self.pairs.photos.get(path, []), labels, ignore_others) for path in sorted(paths)]

    def _entry(self, path: str, mates: list[str], labels: Mapping[str, int], ignore_others: bool) -> Entry:
        fault = ""
        if not mates:
            where = self.tree.path(posixpath.join(_commonest(self.tree.photos, "JPEGImages"), stem_of(path)))
            fault = f"{where}: no photo of that name ({passed_over(self.tree.others) or ', '.join(SUFFIXES)})"
        elif len(mates) > 1:
            fault = (
                f"{self.tree.path(mates[0])}: {posixpath.basename(mates[1])} has the same name; remove or rename one of them"
            )
        read = partial(parse_annotation, self.tree.path(path), labels, ignore_others)
        return Entry(key_of(path), None if fault else self.tree.path(mates[0]), fault, read)

    def _of_list(self, list_file: str, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[Entry]:
        """The photos that a file lists, each once."""
        where = self.tree.path(list_file)
        names = _read_ids(where)
        entries: dict[str, Entry] = {}
        strangers = 0
        for name in names:
            path = self.find(list_file, name)
            if path is not None:
                entries[path] = self._entry(path, self.pairs.photos.get(path, []), labels, ignore_others)
            elif _base(list_file) is None:
                strangers += 1
            else:
                if set(name) & set("/\\\0"):
                    raise DataError(f"{where}: {name!r} is a path; an id is the name of a photo, without suffix")
                path = posixpath.join(
                    _commonest(self.tree.of(".xml"), "Annotations"), f"{_without_columns(unquoted(name))}.xml"
                )
                entries[path] = self._entry(path, self.by_photo.get(key_of(path), []), labels, ignore_others)
        if strangers:
            notes.append(f"{where}: {strangers} of {len(names)} lines name no annotated photo, and were left out")
        if len(entries) + strangers < len(names):
            notes.append(f"{where}: {len(names) - strangers - len(entries)} ids stand more than once and were taken once")
        return list(entries.values())

    def find(self, list_file: str, name: str) -> str | None:
        """The annotation file that a line of a list means: in the folder around ImageSets, or the only one of that name."""
        for each in dict.fromkeys((name, _without_columns(name), unquoted(name))):
            part = part_of(posixpath.join(_base(list_file) or "", posixpath.dirname(each)))
            stems = [posixpath.basename(each), *([stem_of(each)] if each.lower().endswith(SUFFIXES) else [])]
            for stem in stems:
                path = self.by_key.get(f"{part}/{stem}" if part else stem)
                if path:
                    return path
                if len(self.by_stem.get(stem, [])) == 1:
                    return self.by_stem[stem][0]
        return None

    def _tell_left_out(self, split: str | None, notes: list[str]) -> None:
        """Says which photos and annotation files of the folder are not used."""
        is_listed = split in self.lists
        if self.pairs.doubles:
            first = self.tree.path(self.pairs.doubles[0])
            notes.append(f"{first}: its photo has another annotation file; {len(self.pairs.doubles)} such files were left out")
        used = {photo for mates in self.pairs.photos.values() for photo in mates}
        places = set(map(posixpath.dirname, used))  # VOC has masks in folders of their own, which no list means
        photos = [
            each for each in self.tree.photos if (posixpath.dirname(each) in places if is_listed else _is_of(split, each))
        ]
        bare = [photo for photo in photos if photo not in used]
        if bare:
            what = f"{self.tree.path(bare[0])}: has no annotation file; {len(bare)} such photos were left out, of {len(photos)}"
            notes.append(counted(what, len(bare), len(photos)))
        if split is not None:
            lonely = [path for path in self.pairs.lonely if is_listed or _is_of(split, path)]
            if lonely:
                what = f"{self.tree.path(lonely[0])}: has no photo; {len(lonely)} such annotation files were left out"
                paired = self.pairs.photos if is_listed else self.in_folders[split]
                notes.append(counted(what, len(lonely), len(lonely) + len(paired)))
            outside = len(self.pairs.photos) - sum(map(len, self.in_folders.values()))
            if outside and not is_listed:
                notes.append(f"{self.tree.folder}: {outside} annotated photos lie in no folder of a split, and were left out")


def _is_of(split: str | None, path: str) -> bool:
    """Whether a file is of a split by its folder; all are of None."""
    return split is None or split_of(posixpath.dirname(path)) == split


def _as_named_within(tree: Tree, path: str) -> str:
    """Where an annotation file would lie if it were called like the photo that it names; empty if it names none."""
    root = root_of(tree.path(path))
    if root is None:
        return ""
    name = (root.findtext("filename") or root.findtext("path") or "").strip()
    name = composed(posixpath.basename(name.replace("\\", "/")))
    stem = stem_of(name) if name.lower().endswith(SUFFIXES) else name
    return posixpath.join(posixpath.dirname(path), f"{stem}.xml")


def _base(list_file: str) -> str | None:
    """The folder around ImageSets that a list lies in; None where it lies elsewhere."""
    found = re.search(r"(?:^|/)imagesets(?:/main)?/[^/]*$", list_file, re.IGNORECASE)
    return list_file[: found.start()] if found else None


def _commonest(paths: Sequence[str], otherwise: str) -> str:
    """The folder that most files lie in."""
    counts = Counter(map(posixpath.dirname, paths))
    return max(counts, key=lambda folder: counts[folder]) if counts else otherwise


def _read_ids(list_file: Path) -> list[str]:
    """The lines of a list that are not blank."""
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: cannot be read: {error}") from None
    return [composed(line.strip()) for line in lines if line.strip()]


def _without_columns(line: str) -> str:
    """An id without the numbers behind it: VOC's lists of one class have a column of -1, 0 and 1."""
    return re.sub(r"(\s+-?\d+)+$", "", line)
