"""The known dataset formats, and detection of a folder's format."""

from pathlib import Path

from data.dataset.entry import PhotoEntry, warn_if_most
from data.dataset.errors import DataError
from data.dataset.names import nfc
from data.dataset.splits import find_split
from data.layouts.coco import CocoReader
from data.layouts.format_reader import FormatReader
from data.layouts.source_file import ARCHIVES, format_of_file
from data.layouts.tree import FileTree, list_tree
from data.layouts.voc import VocReader
from data.layouts.yolo import YoloReader
from ssd.config.schema import DataConfig, SourceConfig
from ssd.system.files import looked_in
from ssd.system.images import NOT_READ, SUFFIXES, passed_over

FORMATS: dict[str, type[FormatReader]] = {"voc": VocReader, "coco": CocoReader, "yolo": YoloReader}  # values of data.format
FILE_SUFFIXES = tuple({suffix for reader in FORMATS.values() for suffix in reader.suffixes})


def find_format(folder: Path, known: str | None = None, notes: list[str] | None = None) -> tuple[str, FormatReader]:
    """Return the name of a folder's format, and a reader for it.

    Args:
        folder: of the source; for COCO also its JSON file, for YOLO its data.yaml.
        known: the format, if it is not to be detected.
        notes: receives a note if several formats fit.

    Raises:
        DataError: the folder is missing or has no known format, or a file does not stand for its folder.
    """
    if not folder.exists():
        hint = "; draw it with: python scripts/make_shapes.py" if folder.name == "shapes" else "; check data.root"
        raise DataError(f"{folder}: no such folder{looked_in(folder)}{hint}")
    try:
        tree = list_tree(folder, FILE_SUFFIXES)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from None
    of_file = format_of_file(folder)
    if of_file and known not in (None, of_file):
        raise DataError(f"{folder}: is a {of_file.upper()} file, but data.format is {known}; change one of them")
    known = known or of_file
    if known:
        return known, FORMATS[known](tree)
    readers = {name: reader(tree) for name, reader in FORMATS.items()}
    counts = {name: reader.num_annotated() for name, reader in readers.items()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        raise DataError(f"{folder}: unknown dataset format. {unknown_format_help(tree)}")
    others = [name for name, count in counts.items() if count >= 1 and name != best]
    if others and notes is not None:
        found = ", ".join(f"{name.upper()} for {counts[name]:g}" for name in (best, *others))
        notes.append(
            f"{folder}: has boxes in more than one format ({found} photos); using {best.upper()}, set data.format: "
            f"{others[0]} to use the other. Photos with boxes only in the other count as photos without objects: convert or "
            "remove them"
        )
    return best, readers[best]


def unknown_format_help(tree: FileTree) -> str:
    """Describe a folder without annotated photos, what each format needs, and what to do."""
    needs = "; ".join(f"{name.upper()} needs {reader.needs}" for name, reader in FORMATS.items())
    packed = [suffix for suffix in ARCHIVES if tree.others[suffix]]
    if packed:
        remedy = f"Unpack the {', '.join(packed)} first"
    elif not tree.photos and passed_over(tree.others):
        remedy = passed_over(tree.others)
    elif not tree.photos:
        remedy = f"It has no supported photos ({', '.join(SUFFIXES)}): add photos, or convert those of other formats"
    else:
        remedy = (
            "Export or convert boxes of other tools, such as CSV tables (TensorFlow tutorials) or the JSON files of labelme, "
            "VIA and CreateML, to one of these"
        )
    return f"Found: {tree.contents()}. {needs}. {remedy}"


def list_entries(
    folder: Path, source: SourceConfig, data: DataConfig, notes: list[str]
) -> tuple[FormatReader, list[PhotoEntry]]:
    """Return the reader of one source, and its photos; all of them if `source.val_fraction` is to divide them.

    Args:
        folder: of the source.
        source: which part of it.
        data: the section of the configuration with this source.
        notes: receives notes about what was fixed or left out.

    Raises:
        DataError: the folder or the split is missing, or contains no photos.
    """
    _, reader = find_format(folder, data.format, notes)
    split = find_split(folder, source, reader.splits())
    labels = {nfc(name): label for label, name in enumerate(data.class_names)}
    entries = reader.entries(split, labels, data.other_classes == "ignore", notes)
    unread = passed_over(reader.tree.others)
    if unread:
        count = sum(reader.tree.others[suffix] for suffix in NOT_READ)
        notes.append(warn_if_most(f"{folder}: {unread}", count, count + len(reader.tree.photos)))
    if not entries:
        raise DataError(f"{folder}: {f'split {split}' if split else 'the folder'} contains no photos")
    return reader, entries
