"""Annotations: n photos with their objects, in a few arrays."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from data.dataset.errors import DataError
from ssd.boxes import edges_to_voc
from ssd.system.images import printable


@dataclass(frozen=True)
class Annotations:
    """n photos and their N objects. Loader workers share these arrays: nothing writes to them, so nothing is copied."""

    classes: tuple[str, ...]
    paths: np.ndarray  # [n] bytes
    sizes: np.ndarray  # [n, 2] int32 pixels: width, height
    starts: np.ndarray  # [n + 1] int64: photo i has the objects starts[i] to starts[i + 1]
    boxes: np.ndarray  # [N, 4] float32 pixels: edges (x1, y1, x2, y2) counted from 0
    labels: np.ndarray  # [N] int64
    difficult: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] int8, as in VOC: 1 if the object extends beyond its box, 0 if not, -1 if unknown
    contents: np.ndarray  # [n] int64: digests of the files, equal for copies under other names
    thumbnails: np.ndarray  # [n, 16, 16] uint8, grey: see `data.dataset.similar`
    captured: np.ndarray  # [n, 2] int64: digest of the camera, and seconds; zeros if unknown

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate annotations that have the same classes."""
        arrays = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name not in ("classes", "starts")
        }
        starts = np.concatenate([[0], *(np.diff(part.starts) for part in parts)]).cumsum()
        return cls(classes=parts[0].classes, starts=starts, **arrays)

    def select(self, indices: Sequence[int]) -> Self:
        """Return only these photos, in this order."""
        rows = [np.arange(self.starts[i], self.starts[i + 1]) for i in indices]
        objects = np.concatenate([np.zeros(0, np.int64), *rows])
        starts = np.cumsum([0, *map(len, rows)])
        return type(self)(
            self.classes, self.paths[indices], self.sizes[indices], starts,
            self.boxes[objects], self.labels[objects], self.difficult[objects], self.truncated[objects],
            *(getattr(self, name)[indices] for name in ("contents", "thumbnails", "captured")),
        )  # fmt: skip

    def path(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def names(self) -> list[str]:
        """Return a printable name for each photo: its file name, or a relative path if file names repeat."""
        names = [os.path.basename(self.path(index)) for index in range(len(self))]
        if len(set(names)) < len(names):
            paths = [os.path.abspath(self.path(index)) for index in range(len(self))]
            folder = os.path.commonpath(paths)
            names = [os.path.relpath(path, folder) for path in paths]
        return [printable(name) for name in names]

    def digest(self) -> str:
        """Return eight characters that change with file names, sizes and objects, but not with the folder."""
        sha = hashlib.sha256(b"\n".join(map(os.path.basename, self.paths.tolist())))
        for array in (self.sizes, self.starts, self.boxes, self.labels, self.difficult):
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()[:8]

    def objects(self, index: int) -> slice:
        """Return where one photo's objects are in `boxes`, `labels`, `difficult` and `truncated`."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def ground_truth(self, index: int) -> dict[str, np.ndarray]:
        """Return one photo's objects for `ssd.evaluation.voc_eval`: boxes in inclusive pixels counted from 1."""
        rows = self.objects(index)
        boxes = edges_to_voc(self.boxes[rows])
        return {"boxes": boxes, **{name: getattr(self, name)[rows] for name in ("labels", "difficult", "truncated")}}

    def class_counts(self) -> np.ndarray:
        """Return the objects of each class that count in an evaluation, `[n, C]`: those not marked difficult."""
        counts = np.zeros((len(self), len(self.classes)))
        owners = np.repeat(np.arange(len(self)), np.diff(self.starts))
        np.add.at(counts, (owners[~self.difficult], self.labels[~self.difficult]), 1)
        return counts

    def absent_classes(self) -> list[str]:
        """Return the classes without objects."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if not count]

    def require_objects(self, part: str, with_difficult: bool) -> None:
        """Raise an error if there is nothing to train on or to evaluate on.

        Args:
            part: name of the photos in the message: data.train, data.val.
            with_difficult: whether difficult objects count. They may in training, but never in evaluation.

        Raises:
            DataError: no object counts.
        """
        if len(self.labels) and (with_difficult or not self.difficult.all()):
            return
        found = f"all {len(self.labels)} objects are marked difficult" if len(self.labels) else "no photo has an object"
        raise DataError(
            f"{part}: {found}, of {len(self)} photos ({self.path(0)}, ...); check path and split, and whether the "
            "annotations are where they should be"
        )

    def shared_with(self, other: "Annotations") -> list[tuple[str, str]]:
        """Return pairs of paths, here and in the other, for photos of equal content."""
        first = dict(zip(self.contents[::-1].tolist(), range(len(self))[::-1], strict=True))
        rows = np.flatnonzero(np.isin(other.contents, self.contents)).tolist()
        return [(self.path(first[int(other.contents[row])]), other.path(row)) for row in rows]

    def repeats(self) -> list[tuple[str, str]]:
        """Return pairs of paths for photos of equal content: the path of the first, then that of the repeat."""
        _, first, which = np.unique(self.contents, return_index=True, return_inverse=True)
        rows = np.flatnonzero(first[which] != np.arange(len(self))).tolist()
        return [(self.path(int(first[which[row]])), self.path(row)) for row in rows]


def shared_warning(train: Annotations, val: Annotations) -> list[str]:
    """Return a warning if photos are used for both training and evaluation, under whatever name."""
    shared = train.shared_with(val)
    if not shared:
        return []
    found = f"{len(shared)} photos are in both data.train and data.val ({example_pair(shared)})"
    return [f"warning: {found}: mAP will be too high"]


def example_pair(pairs: Sequence[tuple[str, str]]) -> str:
    """Return the first of several pairs of equal photos, in words."""
    one, other = pairs[0]
    return f"{one if one == other else f'{one} is {other}'}{', ...' if len(pairs) > 1 else ''}"
