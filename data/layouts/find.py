"""Data sets as people have them: the layout of a folder, found by what is in its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from data.dataset.annotation import DataError
from data.dataset.inspection import Watch, unwatched
from data.dataset.listing import Entry, counted
from data.dataset.splits import divide, find_split
from data.layouts.coco import Coco
from data.layouts.named import ARCHIVES, layout_named
from data.layouts.tree import Tree, list_tree
from data.layouts.voc import Voc
from data.layouts.yolo import Yolo
from ssd.config.schema import SourceConfig
from ssd.system.files import looked_in
from ssd.system.images import NOT_READ, SUFFIXES, passed_over


class Layout(Protocol):
    """One way in which photos and boxes lie in a folder."""

    tree: Tree

    def __init__(self, tree: Tree) -> None: ...

    def num_annotated(self) -> float:
        """About how many photos it has boxes for in this folder; less than one where names of folders alone speak for it, or
        files that resemble its own and cannot be read."""
        ...

    def splits(self) -> list[str]:
        """The names of the splits; none where the folder is one whole."""
        ...

    def class_counts(self, workers: int = 0, watch: Watch = unwatched) -> Mapping[str, int]:
        """How many objects of each name there are; what cannot be read counts as none.

        Args:
            workers: processes that share the work, if there is enough of it.
            watch: told of the progress.
        """
        ...

    def entries(self, split: str | None, labels: Mapping[str, int], ignore_others: bool, notes: list[str]) -> list[Entry]:
        """The photos of a split, or of the whole folder.

        Args:
            split: one of `splits()`; None for all.
            labels: label of each class name.
            ignore_others: leave out objects of other classes instead of refusing them.
            notes: what was mended or left out is added to them.

        Raises:
            DataError: a file that says which photos there are cannot be used.
        """
        ...


FORMATS: dict[str, type[Layout]] = {"voc": Voc, "coco": Coco, "yolo": Yolo}
NEEDS = {
    "voc": "an XML file a photo, with <annotation> outermost (Annotations/*.xml, or beside the photos)",
    "coco": "a JSON file with images, annotations and categories, where annotations have a bbox or outlines",
    "yolo": "a text file a photo, of the same name, with a class and four numbers a line (labels/*.txt, or beside the photos)",
}


def find_layout(folder: Path, known: str | None = None, notes: list[str] | None = None) -> tuple[str, Layout]:
    """The name of a folder's layout, and a reader of it.

    Args:
        folder: the data set; for COCO also its JSON file, for YOLO its data.yaml.
        known: the layout, where it is not to be found out.
        notes: if more than one fits, which was taken and why is added to them.

    Raises:
        DataError: the folder is missing, or of no layout that is known; or it is a file that stands for none.
    """
    if not folder.exists():
        hint = "; draw it with: python scripts/make_shapes.py" if folder.name == "shapes" else "; check data.root"
        raise DataError(f"{folder}: no such folder{looked_in(folder)}{hint}")
    try:
        tree = list_tree(folder)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from None
    meant = layout_named(folder)
    if meant and known not in (None, meant):
        raise DataError(f"{folder}: is a file of {meant.upper()}, but data.format is {known}; mend one of them")
    known = known or meant
    if known:
        return known, FORMATS[known](tree)
    layouts = {name: layout(tree) for name, layout in FORMATS.items()}
    counts = {name: layout.num_annotated() for name, layout in layouts.items()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        raise DataError(f"{folder}: is of no known layout. {shortage(tree)}")
    others = [name for name, count in counts.items() if count >= 1 and name != best]
    if others and notes is not None:
        found = ", ".join(f"{name.upper()} for {counts[name]:g}" for name in (best, *others))
        notes.append(
            f"{folder}: has boxes in more than one layout ({found} photos); {best.upper()} was taken, data.format: "
            f"{others[0]} takes the other. Photos that have boxes in the other alone count as photos without objects: convert "
            "them, or take them out"
        )
    return best, layouts[best]


def shortage(tree: Tree) -> str:
    """What is in a folder that has no photos with boxes, what each layout would need, and what to do."""
    needs = "; ".join(f"{name.upper()} needs {need}" for name, need in NEEDS.items())
    packed = [suffix for suffix in ARCHIVES if tree.others[suffix]]
    if packed:
        remedy = f"Unpack the {', '.join(packed)} first"
    elif not tree.photos and passed_over(tree.others):
        remedy = passed_over(tree.others)
    elif not tree.photos:
        remedy = f"It has no photo that can be read ({', '.join(SUFFIXES)}): add the photos, or convert those of other formats"
    else:
        remedy = (
            "Boxes in another form, such as the tables (CSV) of TensorFlow's tutorials or the JSON files of labelme, VIA and "
            "CreateML, have to be exported again, or converted, as one of these"
        )
    return f"In it: {tree.contents()}. {needs}. {remedy}"


def list_entries(
    folder: Path,
    source: SourceConfig,
    labels: Mapping[str, int],
    ignore_others: bool,
    seed: int,
    notes: list[str],
    known: str | None = None,
) -> tuple[str, list[Entry]]:
    """The layout of one source, and the photos that it names.

    Args:
        folder: the data set.
        source: which part of it.
        labels: label of each class name.
        ignore_others: leave out objects of other classes instead of refusing them.
        seed: of the division of a folder without splits.
        notes: what was mended or left out is added to them.
        known: the layout, where it is not to be found out.

    Raises:
        DataError: the folder or the split is missing, or it names no photo.
    """
    name, layout = find_layout(folder, known, notes)
    split = find_split(folder, source, layout.splits())
    entries = layout.entries(split, labels, ignore_others, notes)
    unread = passed_over(layout.tree.others)
    if unread:
        count = sum(layout.tree.others[suffix] for suffix in NOT_READ)
        notes.append(counted(f"{folder}: {unread}", count, count + len(layout.tree.photos)))
    if not entries:
        raise DataError(f"{folder}: {f'split {split}' if split else 'the folder'} names no photo")
    if source.val_fraction is not None:
        chosen = divide([entry.name for entry in entries], folder, source, seed)
        entries = [entry for entry in entries if entry.name in chosen]
    return name, entries
