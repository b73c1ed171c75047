"""Data sets of photos with boxes, read once: annotations of any known format, and a first look at every photo."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from data.dataset.annotation import DataError
from data.dataset.conventions import fault_in
from data.dataset.inspection import MENDED, NAMED, Inspected, Known, Watch, inspect, unwatched
from data.dataset.listing import Entry, composed, spelt
from data.dataset.photo_sizes import SeenPhotos
from data.dataset.source_cache import Content, FolderDigest, SourceCache
from data.dataset.splits import draw
from data.layouts.find import list_entries
from ssd.boxes import edges_to_voc
from ssd.config.schema import SourceConfig
from ssd.system.images import printable

MAX_DAMAGED = 0.05  # share of the photos that data.damaged: skip may leave out


@dataclass(frozen=True)
class Annotations:
    """n photos and their N objects in a few arrays: what loader workers share without ever touching (and copying) it."""

    classes: tuple[str, ...]
    paths: np.ndarray  # [n] bytes
    sizes: np.ndarray  # [n, 2] int32 pixels: width, height
    starts: np.ndarray  # [n + 1] int64: photo i has the objects starts[i] to starts[i + 1]
    boxes: np.ndarray  # [N, 4] float32 pixels: edges (x1, y1, x2, y2) counted from 0
    labels: np.ndarray  # [N] int64
    difficult: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] int8: 1 where the object reaches beyond its box, as VOC tells it, 0 where not; -1: not told
    contents: np.ndarray  # [n] int64: digests of the files, the same for copies under other names

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def names(self) -> list[str]:
        """A name for each photo, in printable letters: that of its file or, where several have the same, its path within the
        folder that holds all photos."""
        names = [os.path.basename(self.path(index)) for index in range(len(self))]
        if len(set(names)) < len(names):
            paths = [os.path.abspath(self.path(index)) for index in range(len(self))]
            folder = os.path.commonpath(paths)
            names = [os.path.relpath(path, folder) for path in paths]
        return [printable(name) for name in names]

    def digest(self) -> str:
        """Eight letters that differ where file names, sizes or objects do; the same wherever the folders lie."""
        sha = hashlib.sha256(b"\n".join(map(os.path.basename, self.paths.tolist())))
        for array in (self.sizes, self.starts, self.boxes, self.labels, self.difficult):
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()[:8]

    def objects(self, index: int) -> slice:
        """Where the objects of one photo are in `boxes`, `labels`, `difficult` and `truncated`."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def ground_truth(self, index: int) -> dict[str, np.ndarray]:
        """One photo's objects as `ssd.evaluation.voc_eval` takes them: inclusive pixels counted from 1."""
        rows = self.objects(index)
        boxes = edges_to_voc(self.boxes[rows])
        return {"boxes": boxes, **{name: getattr(self, name)[rows] for name in ("labels", "difficult", "truncated")}}

    def absent_classes(self) -> list[str]:
        """The classes without an object."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if not count]

    @staticmethod
    def joined(parts: Sequence["Annotations"]) -> "Annotations":
        """One after the other; all of the same classes."""
        return Annotations(
            classes=parts[0].classes,
            paths=np.concatenate([part.paths for part in parts]),
            sizes=np.concatenate([part.sizes for part in parts]),
            starts=np.concatenate([[0], *(np.diff(part.starts) for part in parts)]).cumsum(),
            boxes=np.concatenate([part.boxes for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            difficult=np.concatenate([part.difficult for part in parts]),
            truncated=np.concatenate([part.truncated for part in parts]),
            contents=np.concatenate([part.contents for part in parts]),
        )

    def require_objects(self, part: str, with_difficult: bool) -> None:
        """
        Args:
            part: what the photos are for, in words: data.train, data.val.
            with_difficult: whether objects marked difficult count, as they may in training, and never in evaluation.

        Raises:
            DataError: no object counts, so that there is nothing to learn from, or to evaluate on.
        """
        if len(self.labels) and (with_difficult or not self.difficult.all()):
            return
        found = f"all {len(self.labels)} objects are marked difficult" if len(self.labels) else "no photo has an object"
        raise DataError(
            f"{part}: {found}, of {len(self)} photos ({self.path(0)}, ...); look at path and split, and whether "
            "their annotations are where those of the others are"
        )

    def shared_with(self, other: "Annotations") -> list[tuple[str, str]]:
        """The photos of the other that are here too, by their content: the path here, and the one there."""
        first = dict(zip(self.contents[::-1].tolist(), range(len(self))[::-1], strict=True))
        rows = np.flatnonzero(np.isin(other.contents, self.contents)).tolist()
        return [(self.path(first[int(other.contents[row])]), other.path(row)) for row in rows]

    def repeats(self) -> list[tuple[str, str]]:
        """The photos that have the content of one before them: the path of that one, and theirs."""
        _, first, which = np.unique(self.contents, return_index=True, return_inverse=True)
        rows = np.flatnonzero(first[which] != np.arange(len(self))).tolist()
        return [(self.path(int(first[which[row]])), self.path(row)) for row in rows]

    def select(self, indices: Sequence[int]) -> "Annotations":
        """These photos only, in this order."""
        rows = [np.arange(self.starts[i], self.starts[i + 1]) for i in indices]
        objects = np.concatenate([np.zeros(0, np.int64), *rows])
        starts = np.cumsum([0, *map(len, rows)])
        return Annotations(
            self.classes, self.paths[indices], self.sizes[indices], starts,
            self.boxes[objects], self.labels[objects], self.difficult[objects], self.truncated[objects], self.contents[indices],
        )  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """Annotations, and what was mended on the way, for the user to read once."""

    photos: Annotations
    notes: tuple[str, ...]
    damaged: tuple[str, ...]  # why photos were left out, a line for each fault
    num_damaged: int  # photos that were left out


def load_photos(
    sources: Sequence[SourceConfig],
    root: str | Path,
    classes: Sequence[str],
    seed: int = 0,
    ignore_others: bool = False,
    workers: int = 0,
    watch: Watch = unwatched,
    data_format: str | None = None,
    fraction: float = 1.0,
    damaged: Literal["refuse", "skip"] = "refuse",
    digests: dict[Path, FolderDigest] | None = None,
) -> Loaded:
    """Reads the annotations of several folders, concatenated, and looks at every photo that is new. A folder in which nothing
    has changed comes from the cache of an earlier time.

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
        damaged: `skip` leaves out photos that cannot be decoded, and those whose annotation cannot be read.
        digests: of the folders, for those who load several parts of them one after the other; added to.

    Raises:
        DataError: with one line for each fault in any of them.
    """
    faults: list[str] = []
    parts: list[Loaded] = []
    labels = {composed(name): label for label, name in enumerate(classes)}
    memories: dict[Path, SeenPhotos] = {}
    digests = {} if digests is None else digests
    done = 0

    def progress(count: int, total: int) -> None:
        watch(done + count, done + total)

    for source in sources:
        folder = spelt(Path(root) / source.path)
        draws = seed if source.val_fraction or fraction < 1 else None
        reading = (source.model_dump(), tuple(classes), draws, ignore_others, data_format, fraction, damaged)
        if folder not in digests:
            digests[folder] = FolderDigest(folder, lambda: progress(0, 0))
        cache = SourceCache(folder, reading, digests[folder])
        known = cache.recall()
        if known is not None:
            parts.append(_recalled(tuple(classes), known))
            continue
        notes: list[str] = []
        try:
            layout, entries = list_entries(folder, source, labels, ignore_others, seed, notes, data_format)
        except DataError as error:
            faults += str(error).splitlines()
            continue
        if fraction < 1:
            entries = [entry for entry in entries if draw(seed, f"fraction:{entry.name}") < fraction]
        batches = _read(entries, memories, damaged == "skip", workers, progress)
        done += len(entries)
        parts.append(_loaded(tuple(classes), batches, notes))
        found = [fault for batch in batches for fault in batch.faults] or _boxes_fault(folder, layout, batches)
        faults += found
        if not found and all(batch.is_lasting for batch in batches):
            _remember(cache, parts[-1])
    if faults:
        raise DataError("\n".join(faults))
    return _checked(parts, fraction)


def _read(
    entries: Sequence[Entry], memories: dict[Path, SeenPhotos], skip_damaged: bool, workers: int, watch: Watch
) -> list[Inspected]:
    """Reads the annotations, and looks at the photos that `memories`, by their folders, know nothing of."""
    folders = {entry.photo.parent for entry in entries if entry.photo}
    memories.update({folder: SeenPhotos(folder) for folder in folders - set(memories)})

    def known(entry: Entry) -> Known:
        return memories[entry.photo.parent].get(entry.photo) if entry.photo else None

    num_unknown = sum(entry.photo is not None and entry.photo not in memories[entry.photo.parent] for entry in entries)
    batches: list[Inspected] = []
    done = 0
    try:
        for batch in inspect(entries, known, num_unknown, skip_damaged, workers):
            for path, stamp, found in batch.looked_at:
                memories[path.parent].add(path, stamp, found)
            batches.append(batch._replace(looked_at=[]))
            done += batch.num_read
            watch(done, len(entries))
    finally:
        for folder in folders:
            memories[folder].save()
    return batches


def _loaded(classes: tuple[str, ...], batches: Sequence[Inspected], notes: Sequence[str]) -> Loaded:
    photos = Annotations(
        classes=classes,
        paths=np.array([path for batch in batches for path in batch.paths], np.bytes_),
        sizes=np.concatenate([np.zeros((0, 2), np.int32), *(batch.sizes for batch in batches)]),
        starts=np.concatenate([[0], *(batch.counts for batch in batches)]).cumsum(),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(batch.boxes for batch in batches)]),
        labels=np.concatenate([np.zeros(0, np.int64), *(batch.labels for batch in batches)]),
        difficult=np.concatenate([np.zeros(0, bool), *(batch.difficult for batch in batches)]),
        truncated=np.concatenate([np.zeros(0, np.int8), *(batch.truncated for batch in batches)]),
        contents=np.concatenate([np.zeros(0, np.int64), *(batch.contents for batch in batches)]),
    )
    mended = []
    for kind, what in MENDED.items():
        count = sum(batch.mended[kind][0] for batch in batches)
        places = [place for batch in batches for place in batch.mended[kind][1]]
        if count:
            mended.append(f"{count} {what}: {_named(places, count)}")
    return Loaded(
        photos,
        (*notes, *mended),
        tuple(line for batch in batches for line in batch.damaged),
        sum(batch.num_damaged for batch in batches),
    )


def _boxes_fault(folder: Path, layout: str, batches: Sequence[Inspected]) -> list[str]:
    """The fault of a folder whose boxes are written in another convention than its layout's, or cannot be used at all."""
    written = np.concatenate([np.zeros((0, 6), np.float32), *(batch.written for batch in batches)])
    if not len(written):
        return []
    places = [place for kind in MENDED for batch in batches for place in batch.mended[kind][1]]
    photos = [os.fsdecode(path) for batch in batches for path in batch.paths[:1]]
    fault = fault_in(written[:, :4], written[:, 4:], layout, [*places, *photos][0])
    if not fault and not any(batch.counts.any() for batch in batches):
        counts = {what: sum(batch.mended[kind][0] for batch in batches) for kind, what in MENDED.items()}
        reasons = "; ".join(f"{count} {what}" for what, count in counts.items() if count)
        fault = f"none of {len(written)} boxes is left ({places[0]}, ...): {reasons}"
    return [f"{folder}: {fault}"] if fault else []


def _named(places: Sequence[str], count: int) -> str:
    """The first of so many places."""
    named = places[:NAMED]
    return "; ".join([*named, *([f"and {count - len(named)} more"] if count > len(named) else [])])


def _remember(cache: SourceCache, part: Loaded) -> None:
    arrays = {field.name: getattr(part.photos, field.name) for field in fields(Annotations) if field.name != "classes"}
    said = {"notes": part.notes, "damaged": part.damaged, "num_damaged": part.num_damaged}
    cache.remember(part.photos.paths, arrays, said)


def _recalled(classes: tuple[str, ...], known: Content) -> Loaded:
    said = known.said
    return Loaded(Annotations(classes, **known.arrays), tuple(said["notes"]), tuple(said["damaged"]), said["num_damaged"])


def _checked(parts: Sequence[Loaded], fraction: float) -> Loaded:
    """All parts as one.

    Raises:
        DataError: no photo is left, or so many are damaged that something else is likely to be wrong.
    """
    photos = Annotations.joined([part.photos for part in parts])
    damaged = [line for part in parts for line in part.damaged]
    num_damaged = sum(part.num_damaged for part in parts)
    notes = [note for part in parts for note in part.notes]
    total = len(photos) + num_damaged
    if num_damaged > MAX_DAMAGED * total:
        head = f"{num_damaged} of {total} photos cannot be read; data.damaged: skip leaves out no more than {MAX_DAMAGED:.0%}"
        raise DataError("\n".join([head, *damaged]))
    if not len(photos):
        raise DataError(f"data.fraction {fraction:g} leaves no photo")
    repeats = photos.repeats()
    if repeats:
        notes.append(f"{len(repeats)} photos repeat another ({pairs(repeats)}), and count as often; take the copies out")
    if num_damaged:
        notes.append(f"{num_damaged} of {total} photos cannot be read and were left out (data.damaged: skip)")
    return Loaded(photos, tuple(notes), tuple(damaged), num_damaged)


def shared_warning(train: Annotations, val: Annotations) -> list[str]:
    """A line where photos that are trained on are evaluated on as well, by whatever name."""
    shared = train.shared_with(val)
    if not shared:
        return []
    return [f"warning: {len(shared)} photos are in data.train and in data.val ({pairs(shared)}): mAP will flatter the model"]


def pairs(photos: Sequence[tuple[str, str]]) -> str:
    """The first of such pairs of paths."""
    one, other = photos[0]
    return f"{one if one == other else f'{one} is {other}'}{', ...' if len(photos) > 1 else ''}"
