"""The reading of many photos and annotations by worker processes, into a few arrays a batch."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from data.dataset.annotation import Annotation, Damaged, DataError, Unreachable
from data.dataset.disk_cache import Stamp, stamp_of
from data.dataset.images import Look, inspect_photo
from data.dataset.listing import Entry
from data.loading.workers import WatchedLoader, worker_options

BATCH = 64  # photos that a worker reads at once
# To start processes takes as long as to read some thousand annotations, or to decode a hundred photos.
WORTH_PROCESSES = 5000  # annotations
NAMED = 3  # boxes that were mended and are named; of the others, how many there are
LOOK = 20  # annotations that can be read while a photo is decoded

Watch = Callable[[int, int], None]  # photos or files done, and in all
S = TypeVar("S")
T = TypeVar("T")

Known = Look | str | None  # what a look showed, or what is wrong with the photo; None: it has to be looked at
Todo = tuple[Entry, Known]


def unwatched(done: int, total: int) -> None:
    """A `Watch` of nobody."""


# What was mended of boxes, by the names that an `Annotation` has for their places, in words.
MENDED = {
    "clipped": "boxes reached beyond their photo and were clipped to it",
    "empty": "boxes without area were left out",
    "tiny": "boxes are narrower or lower than half a pixel and were left out",
    "repeated": "boxes repeat another of their class and were left out",
}


class Inspected(NamedTuple):
    """What reading a batch of entries came to; `n` of them can be used, and have `N` objects."""

    paths: list[bytes]  # n
    sizes: np.ndarray  # [n, 2] int32 pixels: width, height
    contents: np.ndarray  # [n] int64: digests of the files
    counts: np.ndarray  # [n] int64: objects of each
    boxes: np.ndarray  # [N, 4] float32
    labels: np.ndarray  # [N] int64
    difficult: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] int8
    written: np.ndarray  # [M, 6] float32: edges of all boxes as they were read, width and height of their photo
    num_read: int  # n, and those that cannot be used
    mended: dict[str, tuple[int, list[str]]]  # by the names in MENDED: how many boxes, and the places of the first
    looked_at: list[tuple[Path, Stamp, Look | str]]  # what is to be remembered of photos
    faults: list[str]
    damaged: list[str]  # faults of the photos that were left out
    num_damaged: int  # photos that were left out
    is_lasting: bool  # no fault may have passed by the next time


def inspect(
    entries: Sequence[Entry], known: Callable[[Entry], Known], num_unknown: int, skip_damaged: bool, workers: int
) -> Iterator[Inspected]:
    """Reads all entries, in their order, batch by batch.

    Args:
        entries: the photos.
        known: what was remembered of one's photo.
        num_unknown: photos that nothing is known of, about.
        skip_damaged: leave out what cannot be read, instead of taking it for a fault.
        workers: processes that share the work, if there is enough of it.
    """
    work = len(entries) + LOOK * num_unknown
    options = worker_options(workers if work > WORTH_PROCESSES else 0)
    batches = _InOrder(entries, lambda entry: (entry, known(entry)))
    yield from WatchedLoader(DataLoader(_Inspection(skip_damaged), batch_sampler=batches, **options))


def count_files(paths: Sequence[str], read: Callable[[str], Iterable[T]], workers: int, watch: Watch) -> Counter[T]:
    """How often each thing stands in many files, in the order in which they are met.

    Args:
        paths: of the files.
        read: all things in one file.
        workers: processes that share the work, if there is enough of it.
        watch: told of the progress.
    """
    options = worker_options(workers if len(paths) > WORTH_PROCESSES else 0)
    batches: WatchedLoader[Counter[T]] = WatchedLoader(
        DataLoader(_Tally(read), batch_sampler=_InOrder(paths, lambda path: path), **options)
    )
    counts: Counter[T] = Counter()
    for number, found in enumerate(batches, start=1):
        counts.update(found)
        watch(min(number * BATCH, len(paths)), len(paths))
    return counts


class _InOrder(Sampler[list[T]], Generic[S, T]):
    """Batches of work for a loader, which hands them to its workers one after the other: a worker that shared all of it with
    its parent would in time hold a copy of all, since to look at a Python object is to write to it."""

    def __init__(self, items: Sequence[S], todo: Callable[[S], T]) -> None:
        self.items = items
        self.todo = todo

    def __len__(self) -> int:
        return -(-len(self.items) // BATCH)

    def __iter__(self) -> Iterator[list[T]]:
        for start in range(0, len(self.items), BATCH):
            yield [self.todo(item) for item in self.items[start : start + BATCH]]


class _Tally(Dataset[Counter[T]]):
    """What a worker does with a batch of files that are only counted."""

    def __init__(self, read: Callable[[str], Iterable[T]]) -> None:
        self.read = read

    def __getitems__(self, batch: Sequence[str]) -> Counter[T]:
        return Counter(thing for path in batch for thing in self.read(path))


class _Inspection(Dataset[Inspected]):
    """What a worker does with a batch of entries."""

    def __init__(self, skip_damaged: bool) -> None:
        self.skip_damaged = skip_damaged

    def __getitems__(self, batch: Sequence[Todo]) -> Inspected:
        paths: list[bytes] = []
        contents: list[int] = []
        annotations: list[Annotation] = []
        looked_at: list[tuple[Path, Stamp, Look | str]] = []
        faults: list[str] = []
        damaged: list[str] = []
        num_damaged, is_lasting = 0, True
        for entry, known in batch:
            annotation, content, errors = self._read(entry, known, looked_at)
            lines = [line for error in errors for line in str(error).splitlines()]
            is_lasting &= not any(isinstance(error, Unreachable) for error in errors)
            if self.skip_damaged and any(isinstance(error, Damaged) for error in errors):
                damaged += lines
                num_damaged += 1
            elif lines:
                faults += lines
            elif entry.photo and annotation:
                paths.append(os.fsencode(entry.photo))
                contents.append(content)
                annotations.append(annotation)
        return Inspected(
            paths=paths,
            sizes=np.array([(a.width, a.height) for a in annotations], np.int32).reshape(-1, 2),
            contents=np.array(contents, np.int64),
            counts=np.array([len(a.labels) for a in annotations], np.int64),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *(a.boxes for a in annotations)]),
            labels=np.concatenate([np.zeros(0, np.int64), *(a.labels for a in annotations)]),
            difficult=np.concatenate([np.zeros(0, bool), *(a.difficult for a in annotations)]),
            truncated=np.concatenate([np.zeros(0, np.int8), *(a.truncated for a in annotations)]),
            written=np.concatenate([np.zeros((0, 6), np.float32), *map(_with_size, annotations)]),
            num_read=len(batch),
            mended={kind: _counted([place for a in annotations for place in getattr(a, kind)]) for kind in MENDED},
            looked_at=looked_at,
            faults=faults,
            damaged=damaged,
            num_damaged=num_damaged,
            is_lasting=is_lasting,
        )

    def _read(
        self, entry: Entry, known: Known, looked_at: list[tuple[Path, Stamp, Look | str]]
    ) -> tuple[Annotation | None, int, list[DataError]]:
        """One photo's objects, if they can be used, its content's digest, and all that is wrong."""
        errors: list[DataError] = []
        size, content = None, 0
        try:
            size, content = _look(entry, known, looked_at)
        except Damaged as error:
            errors.append(error)
            if self.skip_damaged:
                return None, content, errors
        try:
            return entry.read(size), content, errors
        except DataError as error:
            return None, content, [*errors, error]


def _look(entry: Entry, known: Known, looked_at: list[tuple[Path, Stamp, Look | str]]) -> Look:
    """What a look at a photo shows, from memory or by doing so, which is added to `looked_at`.

    Raises:
        Damaged: it cannot be used.
    """
    if entry.photo is None:
        raise Damaged(entry.fault)
    if isinstance(known, str):
        raise Damaged(known)
    if known is not None:
        return known
    try:
        stamp = stamp_of(entry.photo, os.stat(entry.photo))
    except OSError as error:
        raise Unreachable(f"{entry.photo}: cannot be read: {error.strerror}") from None
    try:
        look = inspect_photo(entry.photo)
    except Unreachable:
        raise
    except Damaged as error:
        looked_at.append((entry.photo, stamp, str(error)))
        raise
    looked_at.append((entry.photo, stamp, look))
    return look


def _with_size(annotation: Annotation) -> np.ndarray:
    """The boxes as they were read, each with the size of the photo `[k, 6]`."""
    size = np.array([annotation.width, annotation.height], np.float32)
    return np.column_stack([annotation.written, np.broadcast_to(size, (len(annotation.written), 2))])


def _counted(places: list[str]) -> tuple[int, list[str]]:
    """How many there are, and the first of them."""
    return len(places), places[:NAMED]
