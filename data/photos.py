"""Data sets of photos with boxes, read once: annotations of any known format, and a first look at every photo."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from data.annotation import Annotation, DataError, PhotoSize
from data.images import inspect_photo
from data.layouts.find import list_entries
from data.listing import Entry
from data.photo_sizes import SeenPhotos
from data.splits import draw
from data.workers import as_it_is, worker_options
from ssd.boxes import edges_to_voc
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
        """One photo's objects as `ssd.evaluation.voc_eval` takes them: inclusive pixels counted from 1."""
        rows = self.objects(index)
        return {"boxes": edges_to_voc(self.boxes[rows]), "labels": self.labels[rows], "difficult": self.difficult[rows]}

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


def load_photos(
    sources: Sequence[SourceConfig],
    root: str | Path,
    classes: Sequence[str],
    seed: int = 0,
    ignore_others: bool = False,
    workers: int = 0,
    watch: Watch = lambda done, total: None,
    data_format: str | None = None,
    fraction: float = 1.0,
) -> Loaded:
    """Reads the annotations of several folders, concatenated, and looks at every photo that is new.

    Args:
        sources: the folders.
        root: where they are.
        classes: names of the classes.
        seed: of the division of folders without splits, and of the choice of a fraction.
        ignore_others: leave out objects of other classes instead of refusing them.
        workers: processes that share the work, if there is enough of it.
        watch: told of the progress; may raise to stop it.
        data_format: `voc`, `coco` or `yolo`; None to find out for each folder.
        fraction: the share of the photos that is used, the same ones each time.

    Raises:
        DataError: with one line for each fault in any of them.
    """
    faults: list[str] = []
    notes: list[str] = []
    entries: list[Entry] = []
    labels = {name: label for label, name in enumerate(classes)}
    for source in sources:
        try:
            listed = list_entries(Path(root) / source.path, source, labels, ignore_others, seed, notes, data_format)
        except DataError as error:
            faults += str(error).splitlines()
            continue
        entries += [entry for entry in listed if draw(seed, f"fraction:{entry.name}") < fraction]
    if not entries and not faults:
        raise DataError(f"data.fraction {fraction:g} leaves no photo")
    memories: dict[Path, SeenPhotos] = {}
    known: list[PhotoSize | None] = []
    for entry in entries:
        if entry.photo is None:
            faults.append(entry.fault)
            known.append(None)
        else:
            folder = entry.photo.parent
            if folder not in memories:
                memories[folder] = SeenPhotos(folder)
            known.append(memories[folder].get(entry.photo))
    annotations: list[Annotation] = []
    try:
        for found, entry, size in zip(_inspect(entries, known, workers, watch), entries, known, strict=True):
            faults += found.faults
            if found.annotation:
                annotations.append(found.annotation)
            if entry.photo and found.size and not size:
                memories[entry.photo.parent].add(entry.photo, found.size)
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


class _Found(NamedTuple):
    """What reading one photo came to."""

    annotation: Annotation | None
    size: PhotoSize | None
    faults: list[str]


class _Inspection(Dataset[_Found]):
    """The reading of many photos, for worker processes."""

    def __init__(self, entries: Sequence[Entry], known: Sequence[PhotoSize | None]) -> None:
        self.entries = entries
        self.known = known

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> _Found:
        entry = self.entries[index]
        annotation, size, faults = None, self.known[index], []
        try:
            size = size or (entry.photo and inspect_photo(entry.photo))
        except DataError as error:
            faults.append(str(error))
        try:
            annotation = entry.read(size)
        except DataError as error:
            faults += str(error).splitlines()
        return _Found(annotation, size, faults)


def _inspect(entries: Sequence[Entry], known: Sequence[PhotoSize | None], workers: int, watch: Watch) -> Iterator[_Found]:
    """Reads all photos, in their order."""
    # To start processes takes as long as to read some thousand annotations, or to decode a hundred photos.
    work = len(entries) + 20 * sum(size is None for size in known)
    loader = DataLoader(
        _Inspection(entries, known),
        batch_size=32,
        collate_fn=as_it_is,
        **worker_options(workers if work > 5000 else 0),
    )
    done = 0
    for batch in loader:
        yield from batch
        done += len(batch)
        watch(done, len(entries))


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
