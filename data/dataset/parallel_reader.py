"""Read many photos and annotation files with worker processes, into a few arrays per batch."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from data.dataset.disk_cache import FileSignature, file_signature
from data.dataset.entry import PhotoEntry
from data.dataset.errors import DamagedError, DataError, UnreachableError
from data.dataset.images import PhotoInfo, check_photo
from data.dataset.photo_objects import PhotoObjects
from data.loading.loader import WatchedLoader
from data.loading.workers import worker_options

BATCH = 64  # files that a worker reads at a time
# Starting processes takes as long as reading several thousand annotations, or decoding a hundred photos.
MIN_PARALLEL = 5000  # annotations
PHOTO_COST = 20  # annotations that can be read in the time of decoding one photo
MAX_EXAMPLES = 3  # fixed boxes to name; the others are only counted

ProgressCallback = Callable[[int, int], None]  # number of photos or files done, and in all
S = TypeVar("S")
T = TypeVar("T")

CachedCheck = PhotoInfo | str | None  # the result of an earlier check, or the photo's fault; None: not checked yet
Check = tuple[Path, FileSignature, PhotoInfo | str]  # a new check of a photo, to be cached

# Names of fields of `PhotoObjects`, and what happened to the boxes listed there.
BOX_FIXES = {
    "clipped": "boxes reached beyond their photo and were clipped to it",
    "empty": "boxes without area were left out",
    "tiny": "boxes are narrower or lower than half a pixel and were left out",
    "repeated": "boxes repeat another of their class and were left out",
}


def no_progress(done: int, total: int) -> None:
    """A `ProgressCallback` that does nothing."""


class EntryBatch(NamedTuple):
    """A batch of entries after reading: n usable photos with N objects."""

    paths: list[bytes]  # n
    sizes: np.ndarray  # [n, 2] int32 pixels: width, height
    infos: list[PhotoInfo]  # of the n photos
    counts: np.ndarray  # [n] int64: objects per photo
    boxes: np.ndarray  # [N, 4] float32
    labels: np.ndarray  # [N] int64
    difficult: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] int8
    written: np.ndarray  # [M, 6] float32: edges of all boxes as read, then width and height of their photo
    num_read: int  # photos read, usable or not
    fixes: dict[str, tuple[int, list[str]]]  # by the keys of BOX_FIXES: number of boxes, and the places of the first
    checked: list[Check]
    faults: list[str]
    damaged: list[str]  # faults of photos that were left out
    num_damaged: int  # photos left out
    is_lasting: bool  # whether no fault may be temporary


def read_entries(
    entries: Sequence[PhotoEntry],
    cached: Callable[[PhotoEntry], CachedCheck],
    num_new: int,
    skip_damaged: bool,
    workers: int,
) -> Iterator[EntryBatch]:
    """Read all entries in order, batch by batch.

    Args:
        entries: the photos.
        cached: returns the cached check of an entry's photo.
        num_new: approximate number of photos without one.
        skip_damaged: leave out damaged files instead of reporting them as faults.
        workers: processes that share the work, if there is enough.
    """
    work = len(entries) + PHOTO_COST * num_new
    options = worker_options(workers if work > MIN_PARALLEL else 0)
    batches = _InOrder(entries, lambda entry: (entry, cached(entry)))
    yield from WatchedLoader(DataLoader(_EntryReader(skip_damaged), batch_sampler=batches, **options))


def count_in_files(
    paths: Sequence[str], read: Callable[[str], Iterable[T]], workers: int, progress: ProgressCallback
) -> Counter[T]:
    """Count the items in many files, in order of first occurrence.

    Args:
        paths: the files.
        read: returns the items in one file.
        workers: processes that share the work, if there is enough.
        progress: receives the number of files done and in all.
    """
    options = worker_options(workers if len(paths) > MIN_PARALLEL else 0)
    batches: WatchedLoader[Counter[T]] = WatchedLoader(
        DataLoader(_ItemCounter(read), batch_sampler=_InOrder(paths, lambda path: path), **options)
    )
    counts: Counter[T] = Counter()
    for number, found in enumerate(batches, start=1):
        counts.update(found)
        progress(min(number * BATCH, len(paths)), len(paths))
    return counts


class _InOrder(Sampler[list[T]], Generic[S, T]):
    """Batches of work for a loader, in order.

    The work is sent to the workers batch by batch. If they shared the whole list with their parent, each would end up with a
    copy of it, since reading a Python object writes to its reference count.
    """

    def __init__(self, items: Sequence[S], task: Callable[[S], T]) -> None:
        self.items = items
        self.task = task

    def __len__(self) -> int:
        return -(-len(self.items) // BATCH)

    def __iter__(self) -> Iterator[list[T]]:
        for start in range(0, len(self.items), BATCH):
            yield [self.task(item) for item in self.items[start : start + BATCH]]


class _ItemCounter(Dataset[Counter[T]]):
    """Counts the items in a batch of files."""

    def __init__(self, read: Callable[[str], Iterable[T]]) -> None:
        self.read = read

    def __getitems__(self, batch: Sequence[str]) -> Counter[T]:
        return Counter(item for path in batch for item in self.read(path))


class _EntryReader(Dataset[EntryBatch]):
    """Reads a batch of entries."""

    def __init__(self, skip_damaged: bool) -> None:
        self.skip_damaged = skip_damaged

    def __getitems__(self, batch: Sequence[tuple[PhotoEntry, CachedCheck]]) -> EntryBatch:
        paths: list[bytes] = []
        infos: list[PhotoInfo] = []
        photos: list[PhotoObjects] = []
        checked: list[Check] = []
        faults: list[str] = []
        damaged: list[str] = []
        num_damaged, is_lasting = 0, True
        for entry, cached in batch:
            objects, info, errors = self._read(entry, cached, checked)
            lines = [line for error in errors for line in str(error).splitlines()]
            is_lasting &= not any(isinstance(error, UnreachableError) for error in errors)
            if self.skip_damaged and any(isinstance(error, DamagedError) for error in errors):
                damaged += lines
                num_damaged += 1
            elif lines:
                faults += lines
            elif entry.photo and objects and info:
                paths.append(os.fsencode(entry.photo))
                infos.append(info)
                photos.append(objects)
        places = {kind: [place for photo in photos for place in getattr(photo, kind)] for kind in BOX_FIXES}
        return EntryBatch(
            paths=paths,
            sizes=np.array([(photo.width, photo.height) for photo in photos], np.int32).reshape(-1, 2),
            infos=infos,
            counts=np.array([len(photo.labels) for photo in photos], np.int64),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *(photo.boxes for photo in photos)]),
            labels=np.concatenate([np.zeros(0, np.int64), *(photo.labels for photo in photos)]),
            difficult=np.concatenate([np.zeros(0, bool), *(photo.difficult for photo in photos)]),
            truncated=np.concatenate([np.zeros(0, np.int8), *(photo.truncated for photo in photos)]),
            written=np.concatenate([np.zeros((0, 6), np.float32), *map(_written_with_size, photos)]),
            num_read=len(batch),
            fixes={kind: (len(found), found[:MAX_EXAMPLES]) for kind, found in places.items()},
            checked=checked,
            faults=faults,
            damaged=damaged,
            num_damaged=num_damaged,
            is_lasting=is_lasting,
        )

    def _read(
        self, entry: PhotoEntry, cached: CachedCheck, checked: list[Check]
    ) -> tuple[PhotoObjects | None, PhotoInfo | None, list[DataError]]:
        """Return one photo's objects if usable, the result of its check, and all errors."""
        errors: list[DataError] = []
        info = None
        try:
            info = _photo_info(entry, cached, checked)
        except DamagedError as error:
            errors.append(error)
            if self.skip_damaged:
                return None, info, errors
        try:
            return entry.read(info and info.size), info, errors
        except DataError as error:
            return None, info, [*errors, error]


def _photo_info(entry: PhotoEntry, cached: CachedCheck, checked: list[Check]) -> PhotoInfo:
    """Return the cached check of a photo, or check it and add the result to `checked`.

    Raises:
        DamagedError: the photo cannot be used.
    """
    if entry.photo is None:
        raise DamagedError(entry.fault)
    if isinstance(cached, str):
        raise DamagedError(cached)
    if cached is not None:
        return cached
    try:
        signature = file_signature(entry.photo, os.stat(entry.photo))
    except OSError as error:
        raise UnreachableError(f"{entry.photo}: cannot be read: {error.strerror}") from None
    try:
        info = check_photo(entry.photo)
    except UnreachableError:
        raise
    except DamagedError as error:
        checked.append((entry.photo, signature, str(error)))
        raise
    checked.append((entry.photo, signature, info))
    return info


def _written_with_size(objects: PhotoObjects) -> np.ndarray:
    """Return the boxes as read, each followed by its photo's size `[k, 6]`."""
    size = np.array([objects.width, objects.height], np.float32)
    return np.column_stack([objects.written, np.broadcast_to(size, (len(objects.written), 2))])
