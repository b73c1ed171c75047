"""Made-up annotations."""

from dataclasses import fields

import numpy as np

from data.dataset.annotations import Annotations


def square_objects(side: float, count: int = 40) -> Annotations:
    """Return a photo of 300 × 300 pixels with square objects of one size."""
    corners = np.random.default_rng(0).uniform(0, 300 - side, (count, 2)).astype(np.float32)
    return Annotations(
        ("a",), np.array([b"p"]), np.array([[300, 300]], np.int32), np.array([0, count]),
        np.concatenate([corners, corners + side], axis=1), np.zeros(count, np.int64), np.zeros(count, bool),
        np.full(count, -1, np.int8), np.zeros(1, np.int64),
    )  # fmt: skip


def assert_equal(one: Annotations, other: Annotations) -> None:
    for field in fields(Annotations):
        first, second = (np.asarray(getattr(each, field.name)) for each in (one, other))
        assert first.dtype == second.dtype
        assert np.array_equal(first, second)
