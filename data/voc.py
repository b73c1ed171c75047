"""Data sets in PASCAL VOC layout: JPEGImages, Annotations and ImageSets/Main of one or several folders, read once."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from data.annotation import Annotation, DataError, PhotoSize, parse_annotation
from data.images import SUFFIXES, inspect_photo
from data.seen import SeenPhotos
from data.workers import as_it_is, worker_options
from ssd.config import SourceConfig


@dataclass(frozen=True)
class Photos:
    """n photos and their N objects in a few arrays: what loader workers share without ever touching (and copying) it."""

    classes: tuple[str, ...]
    paths: np.ndarray  # [n] bytes
    sizes: np.ndarray  # [n, 2] int32 pixels: width, height
    starts: np.ndarray  # [n + 1] int64: photo i has the objects starts[i] to starts[i + 1]
    boxes: np.ndarray  # [N, 4] float32 pixels: edges (x1, y1, x2, y2) counted from 0
    labels: np.ndarray  # [N] int64
    difficult: np.ndarray  # [N] bool

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def objects(self, index: int) -> slice:
        """Where the objects of one photo stand in `boxes`, `labels` and `difficult`."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def ground_truth(self, index: int) -> dict[str, np.ndarray]:
        """One photo's objects as `ssd.voc_eval` takes them: inclusive pixels counted from 1."""
        rows = self.objects(index)
        boxes = self.boxes[rows] + np.array([1, 1, 0, 0], np.float32)
        return {"boxes": boxes, "labels": self.labels[rows], "difficult": self.difficult[rows]}

    def absent_classes(self) -> list[str]:
        """The classes without an object."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if not count]

    def shared_with(self, other: "Photos") -> int:
        """The number of photos that both have."""
        return len(np.intersect1d(self.paths, other.paths))

    def select(self, indices: Sequence[int]) -> "Photos":
        """These photos only, in this order."""
        rows = [np.arange(self.starts[i], self.starts[i + 1]) for i in indices]
        objects = np.concatenate([np.zeros(0, np.int64), *rows])
        starts = np.cumsum([0, *map(len, rows)])
        return Photos(
            self.classes, self.paths[indices], self.sizes[indices], starts,
            self.boxes[objects], self.labels[objects], self.difficult[objects],
        )  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """Photos, and what was mended on the way, for the user to read once."""

    photos: Photos
    notes: tuple[str, ...]


Watch = Callable[[int, int], None]  # photos done, photos in all


def load_voc(
    sources: Sequence[SourceConfig],
    root: str | Path,
    classes: Sequence[str],
    seed: int = 0,
    ignore_others: bool = False,
    workers: int = 0,
    watch: Watch = lambda done, total: None,
) -> Loaded:
    """Reads the annotations of several VOC-layout folders, concatenated, and looks at every photo that is new.

    Args:
        sources: the folders.
        root: where they are.
        classes: names of the classes.
        seed: of the division of folders without splits.
        ignore_others: leave out objects of other classes instead of refusing them.
        workers: processes that share the work, if there is enough of it.
        watch: told of the progress; may raise to stop it.

    Raises:
        DataError: with one line for each fault in any of them.
    """
    faults: list[str] = []
    notes: list[str] = []
    entries: list[_Entry] = []
    memories: dict[Path, SeenPhotos] = {}
    for source in sources:
        folder = Path(root) / source.path
        try:
            ids = read_split(folder, source, seed, notes)
        except DataError as error:
            faults += str(error).splitlines()
            continue
        seen = memories.setdefault(folder, SeenPhotos(folder))
        photos = _photo_files(folder)
        for photo_id in ids:
            photo = None
            try:
                photo = _one_photo(folder, photo_id, photos)
            except DataError as error:
                faults.append(str(error))
            entries.append(_Entry(folder / "Annotations" / f"{photo_id}.xml", photo, photo and seen.get(photo)))
    labels = {name: label for label, name in enumerate(classes)}
    annotations: list[Annotation] = []
    try:
        for found, entry in zip(_inspect(entries, labels, ignore_others, workers, watch), entries, strict=True):
            faults += found.faults
            if found.annotation:
                annotations.append(found.annotation)
            if entry.photo and found.size and not entry.size:
                memories[entry.photo.parent.parent].add(entry.photo, found.size)
    finally:
        for seen in memories.values():
            seen.save()
    if faults:
        raise DataError("\n".join(faults))
    num_clipped = sum(annotation.num_clipped for annotation in annotations)
    num_empty = sum(annotation.num_empty for annotation in annotations)
    if num_clipped:
        notes.append(f"{num_clipped} boxes reached beyond their photo and were clipped to it")
    if num_empty:
        notes.append(f"{num_empty} boxes without area were left out")
    return Loaded(_compact(tuple(classes), [entry.photo for entry in entries if entry.photo], annotations), tuple(notes))


class _Entry(NamedTuple):
    """One photo to read."""

    xml: Path
    photo: Path | None  # None: there is none
    size: PhotoSize | None  # None: the photo is new


class _Found(NamedTuple):
    """What reading one photo came to."""

    annotation: Annotation | None
    size: PhotoSize | None
    faults: list[str]


class _Inspection(Dataset[_Found]):
    """The reading of many photos, for worker processes."""

    def __init__(self, entries: Sequence[_Entry], labels: dict[str, int], ignore_others: bool) -> None:
        self.entries = entries
        self.labels = labels
        self.ignore_others = ignore_others

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> _Found:
        entry = self.entries[index]
        annotation, size, faults = None, entry.size, []
        try:
            size = size or (entry.photo and inspect_photo(entry.photo))
        except DataError as error:
            faults.append(str(error))
        try:
            annotation = parse_annotation(entry.xml, self.labels, self.ignore_others, size)
        except DataError as error:
            faults += str(error).splitlines()
        return _Found(annotation, size, faults)


def _inspect(
    entries: Sequence[_Entry], labels: dict[str, int], ignore_others: bool, workers: int, watch: Watch
) -> Iterator[_Found]:
    """Reads all photos, in their order."""
    # To start processes takes as long as to read some thousand annotations, or to decode a hundred photos.
    work = len(entries) + 20 * sum(entry.size is None for entry in entries)
    loader = DataLoader(
        _Inspection(entries, labels, ignore_others),
        batch_size=32,
        collate_fn=as_it_is,
        **worker_options(workers if work > 5000 else 0),
    )
    done = 0
    for batch in loader:
        yield from batch
        done += len(batch)
        watch(done, len(entries))


def read_split(folder: Path, source: SourceConfig, seed: int, notes: list[str]) -> list[str]:
    """The ids of the photos that one source names.

    Raises:
        DataError: the folder or the split's file is missing, or it names no photo.
    """
    if not folder.is_dir():
        hint = "; draw it with: python scripts/make_shapes.py" if folder.name == "shapes" else "; check data.root"
        raise DataError(f"{folder}: no such folder{hint}")
    list_file = folder / "ImageSets" / "Main" / f"{source.split}.txt"
    annotated = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
    if list_file.is_file():
        ids = _read_ids(list_file, set(annotated))
    elif source.split == "all" or source.val_fraction is not None:
        ids = annotated
    else:
        known = sorted(path.stem for path in list_file.parent.glob("*.txt"))
        hint = f"there are: {', '.join(known)}" if known else "set split: all, or val_fraction to split the folder"
        raise DataError(f"{list_file}: no such split; {hint}")
    if source.val_fraction is not None:
        if list_file.is_file() or source.split not in ("train", "val"):
            raise DataError(f"{folder}: val_fraction goes with split train or val of a folder without ImageSets")
        ids = _divide(ids, source.split, source.val_fraction, seed)
    tricks = [photo_id for photo_id in ids if set(photo_id) & set("/\\\0")]
    if tricks:
        raise DataError(f"{list_file}: {tricks[0]!r} is a path; an id is the name of a photo in JPEGImages, without suffix")
    distinct = list(dict.fromkeys(ids))
    if len(distinct) < len(ids):
        notes.append(f"{list_file}: {len(ids) - len(distinct)} ids stand more than once and were taken once")
    if not distinct:
        raise DataError(f"{list_file if list_file.is_file() else folder / 'Annotations'}: names no photo")
    return distinct


def _read_ids(list_file: Path, annotated: set[str]) -> list[str]:
    """Ids, one a line. VOC's files of one class have a second column (-1, 0 or 1): it is left out, unless an annotation
    shows that it belongs to the name."""
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: cannot be read: {error}") from None
    ids = []
    for line in filter(None, map(str.strip, lines)):
        name, _, column = line.rpartition(" ")
        has_column = name and column in ("-1", "0", "1") and line not in annotated
        ids.append(name.rstrip() if has_column else line)
    return ids


def _divide(ids: list[str], split: str, val_fraction: float, seed: int) -> list[str]:
    """The train or val part of a folder. A hash of its id decides on each photo, so that neither the order of the
    others nor a change to them moves it across."""

    def draw(photo_id: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{seed}:{photo_id}".encode()).digest()[:8], "big") / 2**64

    return [photo_id for photo_id in ids if (draw(photo_id) < val_fraction) == (split == "val")]


def _photo_files(folder: Path) -> dict[str, list[Path]]:
    """The photos of each id; the folder is listed once, since a look for each suffix of each photo is slow on network disks."""
    try:
        names = sorted(os.listdir(folder / "JPEGImages"))
    except OSError:
        return {}
    photos: dict[str, list[Path]] = {}
    for name in names:
        path = folder / "JPEGImages" / name
        if path.suffix.lower() in SUFFIXES:
            photos.setdefault(path.stem, []).append(path)
    return photos


def _one_photo(folder: Path, photo_id: str, photos: dict[str, list[Path]]) -> Path:
    paths = photos.get(photo_id, [])
    if not paths:
        hint = "; write the name without its suffix" if Path(photo_id).stem in photos else ""
        raise DataError(f"{folder / 'JPEGImages' / photo_id}: no photo of that name ({', '.join(SUFFIXES)}){hint}")
    if len(paths) > 1:
        raise DataError(f"{paths[0]}: {paths[1].name} has the same name; remove or rename one of them")
    return paths[0]


def _compact(classes: tuple[str, ...], paths: list[Path], annotations: list[Annotation]) -> Photos:
    return Photos(
        classes=classes,
        paths=np.array([os.fsencode(path) for path in paths]),
        sizes=np.array([(a.width, a.height) for a in annotations], np.int32),
        starts=np.cumsum([0, *(len(a.labels) for a in annotations)]),
        boxes=np.concatenate([a.boxes for a in annotations]),
        labels=np.concatenate([a.labels for a in annotations]),
        difficult=np.concatenate([a.difficult for a in annotations]),
    )
