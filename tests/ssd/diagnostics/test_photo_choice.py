"""The choice of photos to label, on made-up scores, features and thumbnails."""

from itertools import combinations

import numpy as np
import pytest

from data.dataset.similar import SIDE
from ssd.diagnostics.photo_choice import choose, uncertainty


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Return thumbnails of which none are alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE), np.uint8)


@pytest.mark.parametrize(
    "less, more",
    [
        ([], [0.2]),
        ([0.99, 0.98], [0.6]),  # two certain boxes, one uncertain
        ([0.9], [0.7]),
        ([0.1], [0.3]),
        ([0.9], [0.5, 0.5]),  # one box, two likely classes
    ],
)
def test_uncertain_boxes_count_more_than_certain_ones(less, more):
    assert uncertainty(np.array(less)) < uncertainty(np.array(more))


def test_by_hand():
    assert uncertainty(np.array([0.9, 0.3, 0.5])) == pytest.approx(0.1 + 0.3 + 0.5)


def test_the_most_uncertain_photo_comes_first_and_a_different_one_second():
    features = np.array([[1, 0], [0.99, 0.05], [0, 1], [1, 0.02]])
    assert choose(np.array([0.8, 0.9, 0.5, 0.7]), features, noise(4), 2) == [1, 2]


def test_equal_values_give_k_centre_greedy_which_covers_at_most_twice_as_badly_as_the_best_centres():
    """Gonzalez (1985): the radius is at most twice the optimum, here found by trying all sets."""
    for seed in range(5):
        angles = np.random.default_rng(seed).uniform(0, np.pi, 14)
        features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        distances = np.linalg.norm(features[:, None] - features, axis=2)
        chosen = choose(np.ones(14), features, noise(14), 4)
        for step in range(1, 4):  # each is the farthest from those before it
            nearest = distances[chosen[:step]].min(axis=0)
            assert nearest[chosen[step]] == pytest.approx(nearest.max())
        best = min(distances[list(rows)].min(axis=0).max() for rows in combinations(range(14), 4))
        assert distances[chosen].min(axis=0).max() <= 2 * best + 1e-9


def test_photos_that_look_like_a_chosen_one_are_left_out():
    thumbnails = noise(4)
    thumbnails[2] = thumbnails[0][:, ::-1]  # mirrored
    assert choose(np.array([0.9, 0.1, 0.8, 0.2]), np.eye(4), thumbnails, 4) == [0, 3, 1]


def test_photos_without_detections_come_last():
    features = np.array([[1, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0, 0, 0]])
    assert choose(np.array([0, 0.1, 0, 0]), features, noise(4), 9)[0] == 1
    assert sorted(choose(np.zeros(4), features, noise(4), 9)) == [0, 1, 2, 3]


def test_no_photos():
    assert choose(np.zeros(0), np.zeros((0, 3)), noise(0), 5) == []
