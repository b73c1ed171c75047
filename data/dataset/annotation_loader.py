"""Load the annotations of folders in any known format, check every new photo, and cache both."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from data.dataset.annotations import Annotations, example_pair
from data.dataset.conventions import convention_fault
from data.dataset.entry import PhotoEntry
from data.dataset.errors import DataError
from data.dataset.groups import describe_groups, group_photos, names_within
from data.dataset.names import spelled_on_disk
from data.dataset.parallel_reader import (
    BOX_FIXES,
    MAX_EXAMPLES,
    CachedCheck,
    EntryBatch,
    ProgressCallback,
    no_progress,
    read_entries,
)
from data.dataset.photo_info_cache import PhotoInfoCache
from data.dataset.similar import SIDE
from data.dataset.source_cache import FolderDigest, SourceCache
from data.dataset.splits import divide, draw, make_folds
from data.layouts.find import list_entries
from data.layouts.format_reader import FormatReader
from ssd.config.schema import DataConfig, SourceConfig

Part = Literal["train", "val"]  # entries of the section `data` that name folders
MAX_DAMAGED = 0.05  # share of the photos that data.damaged: skip may leave out


@dataclass(frozen=True)
class LoadedAnnotations:
    """Annotations, and what the user should know about them."""

    photos: Annotations
    notes: tuple[str, ...]
    damaged: tuple[str, ...]  # why photos were left out, one line per fault
    num_damaged: int  # photos left out
    num_read: int  # photos, with those left out and, in a folder that is divided, with those not chosen


def load_annotations(
    data: DataConfig,
    part: Part,
    seed: int = 0,
    workers: int = 0,
    progress: ProgressCallback = no_progress,
    digests: dict[Path, FolderDigest] | None = None,
) -> LoadedAnnotations:
    """Read the annotations of `data.train` or `data.val`: concatenate the folders, and check every new photo.

    An unchanged folder comes from the cache of an earlier run.

    Args:
        data: the section of the configuration. `data.fraction` applies to the training photos only.
        part: which folders to read.
        seed: for splitting folders without splits, and for drawing a fraction.
        workers: processes that share the work, if there is enough.
        progress: receives the number of photos done and in all; may raise to stop.
        digests: of the folders; pass the same dict to load several parts of them in turn. New digests are added.

    Raises:
        DataError: one line per fault.
    """
    fraction = data.fraction if part == "train" and not data.fold else 1.0
    reader = _SourceReader(data, fraction, seed, workers, progress)
    digests = {} if digests is None else digests
    faults: list[str] = []
    parts: list[LoadedAnnotations] = []
    sources: Sequence[SourceConfig] = data.train if data.fold else getattr(data, part)
    for source in sources:
        folder = spelled_on_disk(Path(data.root) / source.path)
        used_seed = seed if source.val_fraction or fraction < 1 else None
        entries = (data.class_names, data.other_classes, data.format, data.damaged, data.group_by, data.fold is not None)
        if folder not in digests:
            digests[folder] = FolderDigest(folder, lambda: reader.report(0, 0))
        cache = SourceCache(folder, (source.model_dump(), *entries, used_seed, fraction), digests[folder])
        loaded = _from_cache(cache, data.class_names)
        if loaded is None:
            loaded, found, is_lasting = reader.read(folder, source)
            faults += found
            if loaded is None:
                continue
            if is_lasting and not found:
                arrays = {name: value for name, value in vars(loaded.photos).items() if name != "classes"}
                texts = {name: value for name, value in vars(loaded).items() if name != "photos"}
                cache.save(loaded.photos.paths, arrays, texts)
        is_of_train = data.fold or any(other.path == source.path and other.val_fraction for other in data.train)
        if part == "val" and is_of_train:
            loaded = LoadedAnnotations(loaded.photos, (), (), 0, len(loaded.photos))  # data.train says it of the whole folder
        parts.append(loaded)
    if faults:
        raise DataError("\n".join(faults))
    joined = _join(parts, fraction)
    return _part_of_folds(joined, data, part, seed) if data.fold else joined


@dataclass
class _SourceReader:
    """Reads one folder after the other."""

    data: DataConfig
    fraction: float
    seed: int
    workers: int
    progress: ProgressCallback
    num_done: int = 0  # photos of the folders before this one
    photo_infos: dict[Path, PhotoInfoCache] = field(default_factory=dict)  # by the photos' folder

    def report(self, done: int, total: int) -> None:
        """Report the progress in the current folder."""
        self.progress(self.num_done + done, self.num_done + total)

    def read(self, folder: Path, source: SourceConfig) -> tuple[LoadedAnnotations | None, list[str], bool]:
        """Return a folder's annotations, its faults, and whether they are sure to be the same next time."""
        notes: list[str] = []
        try:
            reader, entries = list_entries(folder, source, self.data, notes)
        except DataError as error:
            return None, str(error).splitlines(), False
        if source.val_fraction is None:
            entries = [entry for entry in entries if self._is_used(entry.name)]
        batches = self._read(entries)
        self.num_done += len(entries)
        faults = [fault for batch in batches for fault in batch.faults] or _box_faults(folder, reader, batches)
        loaded = _combine(self.data.class_names, batches, notes)
        if source.val_fraction is not None and not self.data.fold and len(loaded.photos) and not faults:
            try:
                loaded = self._part_of(folder, source, entries, loaded)
            except DataError as error:
                faults = str(error).splitlines()
        return loaded, faults, all(batch.is_lasting for batch in batches)

    def _is_used(self, name: str) -> bool:
        return is_in_fraction(name, self.fraction, self.seed)

    def _part_of(
        self, folder: Path, source: SourceConfig, entries: Sequence[PhotoEntry], loaded: LoadedAnnotations
    ) -> LoadedAnnotations:
        """Return the part of a folder without splits that a source names, with the notes about the whole folder.

        Raises:
            DataError: the folder cannot be divided.
        """
        assert source.val_fraction is not None
        photos = loaded.photos
        name_of = {os.fsencode(entry.photo): entry.name for entry in entries if entry.photo}
        names = [name_of[path] for path in photos.paths.tolist()]
        base = folder if folder.is_dir() else folder.parent
        groups = group_photos(names_within(base, photos), photos, self.data.group_by)
        objects = None
        if self.data.group_by != "none":
            objects = photos.class_counts()
        try:
            is_val = divide(names, groups.of_photo, objects, source.val_fraction, self.seed)
        except ValueError:
            what = "one photo" if len(photos) == 1 else f"{len(photos)} photos of one group (data.group_by)"
            raise DataError(f"{folder}: {what} cannot be divided into train and val; add more") from None
        chosen = np.flatnonzero(is_val if source.split == "val" else ~is_val).tolist()
        note = describe_groups(groups, photos)
        notes = [*loaded.notes, *([f"{folder}: {note}; each is on one side of the split"] if note else [])]
        used = [i for i in chosen if self._is_used(names[i])]
        return replace(loaded, photos=photos.select(used), notes=tuple(notes))

    def _read(self, entries: Sequence[PhotoEntry]) -> list[EntryBatch]:
        """Read annotations, and check the photos that are not in `photo_infos`."""
        infos = self.photo_infos
        folders = {entry.photo.parent for entry in entries if entry.photo}
        infos.update({folder: PhotoInfoCache(folder) for folder in folders - set(infos)})

        def cached(entry: PhotoEntry) -> CachedCheck:
            return infos[entry.photo.parent].get(entry.photo) if entry.photo else None

        num_new = sum(entry.photo is not None and entry.photo not in infos[entry.photo.parent] for entry in entries)
        batches: list[EntryBatch] = []
        done = 0
        try:
            for batch in read_entries(entries, cached, num_new, self.data.damaged == "skip", self.workers):
                for path, signature, result in batch.checked:
                    infos[path.parent].add(path, signature, result)
                batches.append(batch._replace(checked=[]))
                done += batch.num_read
                self.report(done, len(entries))
        finally:
            for folder in folders:
                infos[folder].save()
        return batches


def is_in_fraction(name: str, fraction: float, seed: int) -> bool:
    """Return whether a photo is in `data.fraction`."""
    return fraction == 1 or draw(seed, f"fraction:{name}") < fraction


def _part_of_folds(loaded: LoadedAnnotations, data: DataConfig, part: Part, seed: int) -> LoadedAnnotations:
    """Return the part of the photos of data.train that `data.fold` names: the fold for data.val, the others for data.train.

    Raises:
        DataError: there are fewer groups of photos than folds.
    """
    number, num_folds = map(int, str(data.fold).split("/"))
    photos = loaded.photos.select(np.sort(np.unique(loaded.photos.paths, return_index=True)[1]).tolist())  # each once
    folders = [Path(data.root) / source.path for source in data.train]
    base = os.path.commonpath([os.path.abspath(folder if folder.is_dir() else folder.parent) for folder in folders])
    names = names_within(base, photos)
    groups = group_photos(names, photos, data.group_by)
    try:
        is_val = make_folds(names, groups.of_photo, photos.class_counts(), num_folds, seed) == number - 1
    except ValueError:
        raise DataError(
            f"data.train: {len(photos)} photos in {len(groups)} groups (data.group_by) cannot be divided into {num_folds} "
            "folds; use fewer folds, or add photos"
        ) from None
    fraction = data.fraction if part == "train" else 1.0
    chosen = np.flatnonzero(is_val if part == "val" else ~is_val).tolist()
    used = [i for i in chosen if is_in_fraction(names[i], fraction, seed)]
    if not used:
        raise DataError(f"data.fraction {fraction:g} leaves no photo")
    note = describe_groups(groups, photos)
    notes = [*loaded.notes, *([f"{note}; each is in one fold"] if note else [])]
    notes.append(f"fold {number} of {num_folds}: {is_val.sum()} photos to evaluate on; data.val is not used")
    return replace(loaded, photos=photos.select(used), notes=tuple(notes) if part == "train" else ())


def _combine(classes: tuple[str, ...], batches: Sequence[EntryBatch], notes: Sequence[str]) -> LoadedAnnotations:
    infos = [info for batch in batches for info in batch.infos]
    photos = Annotations(
        classes=classes,
        paths=np.array([path for batch in batches for path in batch.paths], np.bytes_),
        sizes=np.concatenate([np.zeros((0, 2), np.int32), *(batch.sizes for batch in batches)]),
        starts=np.concatenate([[0], *(batch.counts for batch in batches)]).cumsum(),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(batch.boxes for batch in batches)]),
        labels=np.concatenate([np.zeros(0, np.int64), *(batch.labels for batch in batches)]),
        difficult=np.concatenate([np.zeros(0, bool), *(batch.difficult for batch in batches)]),
        truncated=np.concatenate([np.zeros(0, np.int8), *(batch.truncated for batch in batches)]),
        contents=np.array([info.content for info in infos], np.int64),
        thumbnails=np.frombuffer(b"".join(info.thumbnail for info in infos), np.uint8).reshape(-1, SIDE, SIDE),
        captured=np.array([info.captured for info in infos], np.int64).reshape(-1, 2),
    )
    fixes = []
    for kind, text in BOX_FIXES.items():
        count = sum(batch.fixes[kind][0] for batch in batches)
        examples = [place for batch in batches for place in batch.fixes[kind][1]][:MAX_EXAMPLES]
        if count:
            more = [f"and {count - len(examples)} more"] if count > len(examples) else []
            fixes.append(f"{count} {text}: {'; '.join([*examples, *more])}")
    damaged = tuple(line for batch in batches for line in batch.damaged)
    num_damaged = sum(batch.num_damaged for batch in batches)
    return LoadedAnnotations(photos, (*notes, *fixes), damaged, num_damaged, len(photos) + num_damaged)


def _box_faults(folder: Path, reader: FormatReader, batches: Sequence[EntryBatch]) -> list[str]:
    """Return the fault of a folder whose boxes use another convention than its format, or of which none is usable."""
    written = np.concatenate([np.zeros((0, 6), np.float32), *(batch.written for batch in batches)])
    if not len(written):
        return []
    places = [place for kind in BOX_FIXES for batch in batches for place in batch.fixes[kind][1]]
    photos = [os.fsdecode(path) for batch in batches for path in batch.paths[:1]]
    fault = convention_fault(written[:, :4], written[:, 4:], reader.convention, reader.is_relative, [*places, *photos][0])
    if not fault and not any(batch.counts.any() for batch in batches):
        counts = {text: sum(batch.fixes[kind][0] for batch in batches) for kind, text in BOX_FIXES.items()}
        reasons = "; ".join(f"{count} {text}" for text, count in counts.items() if count)
        fault = f"none of {len(written)} boxes can be used ({places[0]}, ...): {reasons}"
    return [f"{folder}: {fault}"] if fault else []


def _from_cache(cache: SourceCache, classes: tuple[str, ...]) -> LoadedAnnotations | None:
    content = cache.load()
    if content is None:
        return None
    notes, damaged, num_damaged, num_read = (content.texts[name] for name in ("notes", "damaged", "num_damaged", "num_read"))
    return LoadedAnnotations(Annotations(classes, **content.arrays), tuple(notes), tuple(damaged), num_damaged, num_read)


def _join(parts: Sequence[LoadedAnnotations], fraction: float) -> LoadedAnnotations:
    """Concatenate the parts.

    Raises:
        DataError: there are no photos, or so many damaged ones that something else is probably wrong.
    """
    photos = Annotations.join([part.photos for part in parts])
    damaged = [line for part in parts for line in part.damaged]
    num_damaged = sum(part.num_damaged for part in parts)
    notes = [note for part in parts for note in part.notes]
    total = sum(part.num_read for part in parts)
    if num_damaged > MAX_DAMAGED * total:
        head = f"{num_damaged} of {total} photos cannot be read; data.damaged: skip leaves out at most {MAX_DAMAGED:.0%}"
        raise DataError("\n".join([head, *damaged]))
    if not len(photos):
        raise DataError(f"data.fraction {fraction:g} leaves no photo")
    repeats = photos.repeats()
    if repeats:
        notes.append(
            f"{len(repeats)} photos are copies of another ({example_pair(repeats)}) and count twice; remove the copies"
        )
    if num_damaged:
        notes.append(f"{num_damaged} of {total} photos cannot be read and were left out (data.damaged: skip)")
    return LoadedAnnotations(photos, tuple(notes), tuple(damaged), num_damaged, total)
