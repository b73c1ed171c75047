"""PASCAL VOC: an XML file per photo."""

import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from data.dataset.entry import PhotoEntry, warn_if_most
from data.dataset.errors import DataError
from data.dataset.names import nfc, strip_quotes
from data.dataset.parallel_reader import ProgressCallback, count_in_files, no_progress
from data.dataset.splits import role
from data.layouts.format_reader import FormatReader
from data.layouts.pairing import (
    Pairs,
    clean_lines,
    group_by,
    key_of,
    pair,
    part_of,
    photo_named,
    split_of_file,
    stem_of,
    unique_photo_entry,
)
from data.layouts.tree import FileTree
from data.layouts.voc_annotation import class_names_in, is_annotation, parse_annotation, root_of
from ssd.system.images import SUFFIXES, passed_over

NUM_SAMPLED = 20  # files to look into to recognise the format


class VocReader(FormatReader):
    """A folder with an XML file per photo, in any arrangement. Splits are lists in ImageSets/Main, or folders."""

    suffixes = (".xml", ".txt")
    needs = "an XML file per photo with <annotation> as its root (Annotations/*.xml, or beside the photos)"
    convention = "corners (x1, y1, x2, y2)"
    is_relative = False

    def __init__(self, tree: FileTree) -> None:
        self.tree = tree

    @cached_property
    def pairs(self) -> Pairs:
        """Annotation files with their photos. A file of another name may name its photo in <filename>."""
        pairs = pair(self.tree.of(".xml"), self.tree.photos)
        unpaired = [path for path in pairs.unpaired if is_annotation(self.tree.path(path))]
        if not unpaired:
            return pairs._replace(unpaired=[])
        taken = {photo for mates in pairs.photos.values() for photo in mates}
        free = [photo for photo in self.tree.photos if photo not in taken]
        named = {_path_by_filename(self.tree, path): path for path in unpaired} if free else {}
        more = pair(list(named), free)
        photos = pairs.photos | {named[name]: mates for name, mates in more.photos.items()}
        return Pairs(photos, pairs.doubles, [path for path in unpaired if path not in photos])

    @cached_property
    def annotation_by_key(self) -> dict[str, str]:
        """The annotation file of each part and stem."""
        paths = sorted([*self.pairs.photos, *self.pairs.unpaired], reverse=True)
        whole = {key_of(photo_named(path)): path for path in paths if photo_named(path)}  # a.jpg.xml belongs to a
        return whole | {key_of(path): path for path in paths}

    @cached_property
    def annotations_by_stem(self) -> dict[str, list[str]]:
        return group_by((*self.pairs.photos, *self.pairs.unpaired), stem_of)

    @cached_property
    def photos_by_key(self) -> dict[str, list[str]]:
        return group_by(self.tree.photos, key_of)

    @cached_property
    def lists(self) -> dict[str, list[str]]:
        """The files that list each split's photos: in ImageSets, or elsewhere with a split's name and annotated photos."""
        paths = self.tree.of(".txt")
        in_image_sets = [path for path in paths if _voc_folder(path) is not None]
        elsewhere = [
            path
            for path in paths
            if _voc_folder(path) is None
            and role(stem_of(path))
            and any(self.find(path, line) for line in _read_list(self.tree.path(path)))
        ]
        return group_by(in_image_sets or elsewhere, stem_of)

    @cached_property
    def in_folders(self) -> dict[str, list[str]]:
        """The annotation files of each split that a folder names."""
        groups = group_by(self.pairs.photos, lambda path: split_of_file(path) or split_of_file(self.pairs.photos[path][0]))
        return {split: paths for split, paths in groups.items() if split}

    def num_annotated(self) -> float:
        paths = list(self.pairs.photos)
        if any(is_annotation(self.tree.path(path)) for path in paths[:: len(paths) // NUM_SAMPLED + 1]):
            return len(paths)
        names = {name.lower() for path in (*self.tree.photos, *self.tree.of(".xml", ".txt")) for name in path.split("/")[:-1]}
        return 0.5 if names & {"jpegimages", "annotations", "imagesets"} else 0

    def splits(self) -> list[str]:
        names = sorted(self.lists or self.in_folders)
        # VOC also has a list per class: cat_train beside train.
        return [name for name in names if not any(name.endswith(f"_{other}") for other in names)]

    def class_counts(self, workers: int = 0, progress: ProgressCallback = no_progress) -> Counter[str]:
        """Return the number of objects per class name, in order of first occurrence. Unreadable files are skipped."""
        return count_in_files(
            [str(self.tree.path(path)) for path in sorted(self.pairs.photos)], class_names_in, workers, progress
        )

    def entries(self, split: str | None, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[PhotoEntry]:
        """Return the photos of a split; arguments as in `FormatReader`."""
        self._note_left_out(split, notes)
        if split in self.lists:
            return [entry for path in self.lists[split] for entry in self._listed(path, labels, ignore_others, notes)]
        paths = self.in_folders[split] if split else [*self.pairs.photos, *self.pairs.unpaired]
        return [self._entry(path, self.pairs.photos.get(path, []), labels, ignore_others) for path in sorted(paths)]

    def _entry(self, path: str, photos: list[str], labels: Mapping[str, int], ignore_others: bool) -> PhotoEntry:
        read = partial(parse_annotation, self.tree.path(path), labels, ignore_others)
        if photos:
            return unique_photo_entry(self.tree, key_of(path), photos, read)
        expected = self.tree.path(posixpath.join(_most_common_folder(self.tree.photos, "JPEGImages"), stem_of(path)))
        fault = f"{expected}: no photo of that name ({passed_over(self.tree.others) or ', '.join(SUFFIXES)})"
        return PhotoEntry(key_of(path), None, fault, read)

    def _listed(self, list_file: str, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[PhotoEntry]:
        """Return the photos in a list, each once."""
        where = self.tree.path(list_file)
        lines = _read_list(where)
        entries: dict[str, PhotoEntry] = {}
        num_unknown = 0
        for line in lines:
            path = self.find(list_file, line)
            if path is not None:
                entries[path] = self._entry(path, self.pairs.photos.get(path, []), labels, ignore_others)
            elif _voc_folder(list_file) is None:
                num_unknown += 1
            else:
                if set(line) & set("/\\\0"):
                    raise DataError(f"{where}: {line!r} is a path; write a photo's name without suffix")
                folder = _most_common_folder(self.tree.of(".xml"), "Annotations")
                path = posixpath.join(folder, f"{_without_columns(strip_quotes(line))}.xml")
                entries[path] = self._entry(path, self.photos_by_key.get(key_of(path), []), labels, ignore_others)
        if num_unknown:
            notes.append(f"{where}: {num_unknown} of {len(lines)} lines do not name an annotated photo and were left out")
        if len(entries) + num_unknown < len(lines):
            notes.append(f"{where}: {len(lines) - num_unknown - len(entries)} duplicate ids were ignored")
        return list(entries.values())

    def find(self, list_file: str, line: str) -> str | None:
        """Return the annotation file that a line of a list means: below the same VOC folder, or the only one of its name."""
        for name in dict.fromkeys((line, _without_columns(line), strip_quotes(line))):
            part = part_of(posixpath.join(_voc_folder(list_file) or "", posixpath.dirname(name)))
            stems = [posixpath.basename(name), *([stem_of(name)] if name.lower().endswith(SUFFIXES) else [])]
            for stem in stems:
                path = self.annotation_by_key.get(f"{part}/{stem}" if part else stem)
                if path:
                    return path
                if len(self.annotations_by_stem.get(stem, [])) == 1:
                    return self.annotations_by_stem[stem][0]
        return None

    def _note_left_out(self, split: str | None, notes: list[str]) -> None:
        """Add notes about photos and annotation files that are not used."""
        is_listed = split in self.lists
        if self.pairs.doubles:
            first = self.tree.path(self.pairs.doubles[0])
            notes.append(f"{first}: its photo has another annotation file; {len(self.pairs.doubles)} such files were left out")
        used = {photo for mates in self.pairs.photos.values() for photo in mates}
        folders = set(map(posixpath.dirname, used))  # masks, which no list names, have folders of their own
        photos = [
            photo for photo in self.tree.photos if (posixpath.dirname(photo) in folders if is_listed else _is_in(split, photo))
        ]
        bare = [photo for photo in photos if photo not in used]
        if bare:
            note = (
                f"{self.tree.path(bare[0])}: has no annotation file; {len(bare)} of {len(photos)} photos were left out for this"
            )
            notes.append(warn_if_most(note, len(bare), len(photos)))
        if split is not None:
            unpaired = [path for path in self.pairs.unpaired if is_listed or _is_in(split, path)]
            if unpaired:
                note = f"{self.tree.path(unpaired[0])}: has no photo; {len(unpaired)} such annotation files were left out"
                paired = self.pairs.photos if is_listed else self.in_folders[split]
                notes.append(warn_if_most(note, len(unpaired), len(unpaired) + len(paired)))
            outside = len(self.pairs.photos) - sum(map(len, self.in_folders.values()))
            if outside and not is_listed:
                notes.append(f"{self.tree.folder}: {outside} annotated photos are in no split's folder and were left out")


def _is_in(split: str | None, path: str) -> bool:
    """Return whether a file's folder belongs to a split; None means all."""
    return split is None or split_of_file(path) == split


def _path_by_filename(tree: FileTree, path: str) -> str:
    """Return the path that an annotation file would have with its photo's name; empty if it does not name a photo."""
    root = root_of(tree.path(path))
    if root is None:
        return ""
    name = (root.findtext("filename") or root.findtext("path") or "").strip()
    name = nfc(posixpath.basename(name.replace("\\", "/")))
    stem = stem_of(name) if name.lower().endswith(SUFFIXES) else name
    return posixpath.join(posixpath.dirname(path), f"{stem}.xml")


def _voc_folder(list_file: str) -> str | None:
    """Return the folder that holds a list's ImageSets; None if the list lies elsewhere."""
    found = re.search(r"(?:^|/)imagesets(?:/main)?/[^/]*$", list_file, re.IGNORECASE)
    return list_file[: found.start()] if found else None


def _most_common_folder(paths: Sequence[str], default: str) -> str:
    """Return the folder with most files."""
    counts = Counter(map(posixpath.dirname, paths))
    return max(counts, key=lambda folder: counts[folder]) if counts else default


def _read_list(list_file: Path) -> list[str]:
    """Return the lines of a list that are not blank."""
    try:
        return clean_lines(list_file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: cannot be read: {error}") from None


def _without_columns(line: str) -> str:
    """Return an id without the numbers after it: VOC's lists of one class have a column of -1, 0 and 1."""
    return re.sub(r"(\s+-?\d+)+$", "", line)
