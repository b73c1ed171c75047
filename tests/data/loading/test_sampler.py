"""Balanced sampling. The order of plain training is tested with the loader."""

from collections import Counter

import numpy as np
import pytest

from data.loading.sampler import REPEATED, TrainSampler, repeat_factors


def test_repeat_factors_by_hand():
    # Class 0 is in all four photos, class 1 in one: sqrt(4 / 1). An object more in the same photo changes nothing.
    starts, labels = np.array([0, 1, 4, 5, 6]), np.array([0, 0, 1, 1, 0, 0])
    assert repeat_factors(starts, labels).tolist() == [1, 2, 1, 1]
    assert repeat_factors(np.array([0, 0, 1]), np.array([3])).tolist() == [1, 1]  # no object: 1
    assert repeat_factors(np.array([0, 0]), np.zeros(0, np.int64)).tolist() == [1]


def test_samples_appear_as_often_as_their_weights_say():
    weights = np.array([1.0, 2.0, 1.0, 5.0, 1.0])
    batches = list(TrainSampler(5, 5, 400, seed=3, weights=weights))
    counts = Counter(index for keys in batches for _, index in keys)
    expected = 5 * weights / weights.sum()
    for index, share in enumerate(expected):
        per_epoch = Counter(sum(key[1] == index for key in keys) for keys in batches)
        assert set(per_epoch) <= {int(np.floor(share)), int(np.ceil(share))}
        assert counts[index] / 400 == pytest.approx(share, abs=0.08)
    assert all(len(set(keys)) == 5 for keys in batches)  # repeated samples have keys, and so augmentations, of their own
    assert {key[0] // REPEATED for keys in batches for key in keys} == {0, 1, 2}


def test_equal_weights_leave_each_sample_once_in_an_epoch():
    for keys in TrainSampler(7, 7, 20, seed=0, weights=np.full(7, 0.3)):
        assert sorted(index for _, index in keys) == list(range(7))


def test_a_resumed_stream_goes_on_with_the_same_samples():
    weights = np.linspace(1, 3, 11)
    whole = list(TrainSampler(11, 4, 30, seed=1, weights=weights))
    assert list(TrainSampler(11, 4, 30, seed=1, first_iteration=17, weights=weights)) == whole[17:]
