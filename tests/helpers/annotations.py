"""Comparison of annotations."""

from dataclasses import fields

import numpy as np

from data.dataset.annotations import Annotations


def assert_equal(one: Annotations, other: Annotations) -> None:
    for field in fields(Annotations):
        first, second = (np.asarray(getattr(each, field.name)) for each in (one, other))
        assert first.dtype == second.dtype
        assert np.array_equal(first, second)
