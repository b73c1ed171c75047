"""Annotations: loaded from folders, and made up."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset.annotation_loader import LoadedAnnotations, Part, load_annotations
from data.dataset.annotations import Annotations
from data.dataset.parallel_reader import ProgressCallback, no_progress
from data.dataset.similar import SIDE
from ssd.config.schema import DataConfig, SourceConfig
from tests.helpers.exports import NAMES


def load_sources(
    sources: Sequence[SourceConfig],
    root: Path,
    classes: Sequence[str] = NAMES,
    seed: int = 0,
    workers: int = 0,
    progress: ProgressCallback = no_progress,
    part: Part = "train",
    **entries: Any,
) -> LoadedAnnotations:
    """Load several folders, with more entries of the section `data`."""
    parts = {"train": tuple(sources), "val": tuple(sources)}
    data = DataConfig(root=str(root), classes=tuple(classes), **parts, **entries)
    return load_annotations(data, part, seed, workers, progress)


def load(
    folder: Path, split: str = "all", classes: Sequence[str] = NAMES, val_fraction: float | None = None, **options: Any
) -> LoadedAnnotations:
    """Load one folder, or a file that stands for one; options as in `load_sources`."""
    source = SourceConfig(path=folder.name, split=split, val_fraction=val_fraction)
    return load_sources([source], folder.parent, classes, **options)


def blank(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return thumbnails and times of photos that are alike to no other."""
    return np.zeros((count, SIDE, SIDE), np.uint8), np.zeros((count, 2), np.int64)


def square_objects(side: float, count: int = 40) -> Annotations:
    """Return a photo of 300 × 300 pixels with square objects of one size."""
    corners = np.random.default_rng(0).uniform(0, 300 - side, (count, 2)).astype(np.float32)
    return Annotations(
        ("a",), np.array([b"p"]), np.array([[300, 300]], np.int32), np.array([0, count]),
        np.concatenate([corners, corners + side], axis=1), np.zeros(count, np.int64), np.zeros(count, bool),
        np.full(count, -1, np.int8), np.zeros(1, np.int64), *blank(1),
    )  # fmt: skip


def assert_equal(one: Annotations, other: Annotations) -> None:
    for field in fields(Annotations):
        first, second = (np.asarray(getattr(each, field.name)) for each in (one, other))
        assert first.dtype == second.dtype
        assert np.array_equal(first, second)
