import numpy as np
import pytest
import torch

from ssd.autoconfig.dbox_fit import Objects, Sizes, coverage, fit, kmeans_start, map_overlap, objects_of
from ssd.boxes import iou, to_corners
from ssd.config.schema import ModelConfig
from ssd.dbox import SSD300_VOC, make_dbox_list, named_specs, spec_of

VOC = Sizes((30, 60, 111, 162, 213, 264, 315), ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)))
ODD = Sizes((9, 20, 31, 77, 150, 330, 390), ((5,), (1.2, 7), (3, 4), (2, 6), (4,), (1.5,)))


def boxes_of(width: float, height: float, count: int, seed: int = 0) -> np.ndarray:
    """Return corners `[n, 4]`, relative to the photo, of objects of about this size in the network's 300 pixels."""
    rng = np.random.default_rng(seed)
    size = np.array([width, height]) * rng.uniform(0.8, 1.25, (count, 2))
    corner = rng.uniform(0, 300 - size)
    return np.concatenate([corner, corner + size], axis=1) / 300


@pytest.mark.parametrize("sizes", [VOC, ODD])
def test_one_cell_is_enough_for_the_largest_overlap(sizes):
    rng = np.random.default_rng(1)
    corners = np.sort(rng.uniform(0, 300, (500, 2, 2)), axis=1).reshape(-1, 4)
    dboxes = to_corners(make_dbox_list(spec_of(sizes)).double())
    expected = iou(torch.from_numpy(corners / 300), dboxes).amax(dim=1).numpy()
    overlap = np.max([map_overlap(row, corners, 300) for row in spec_of(sizes).maps], axis=0)
    np.testing.assert_allclose(overlap, expected, atol=1e-5)


def test_each_class_counts_the_same():
    boxes = np.concatenate([boxes_of(100, 100, 90), boxes_of(5, 5, 10)])
    objects = objects_of(boxes, np.repeat([0, 3], [90, 10]))
    assert objects.weights.sum() == pytest.approx(1)
    assert coverage(VOC, objects) == pytest.approx(0.5)


def test_a_large_data_set_is_sampled():
    objects = objects_of(np.tile(boxes_of(50, 50, 1), (20_001, 1)), np.zeros(20_001, int))
    assert objects.boxes.shape == (10_000, 4)


@pytest.mark.parametrize("width, height", [(90, 14), (12, 12)])
def test_fitted_dboxes_cover_more_objects(width, height):
    """Lines of text, and objects smaller than every DBox."""
    objects = objects_of(boxes_of(width, height, 300), np.zeros(300, int))
    found = fit(objects)
    spec = spec_of(found)
    usual = max(coverage(VOC, objects), coverage(Sizes((21, 45, 99, 153, 207, 261, 315), VOC.ratios), objects))
    assert usual < 0.4
    assert coverage(found, objects) > usual + 0.3
    assert spec.boxes_per_cell == SSD300_VOC.boxes_per_cell
    assert make_dbox_list(spec).shape == (8732, 4)
    assert fit(objects) == found
    # Another sample of similar objects is covered equally well.
    others = objects_of(boxes_of(width, height, 300, seed=5), np.zeros(300, int))
    assert coverage(found, others) > usual + 0.3


def test_a_perfect_coverage_is_kept():
    objects = objects_of(boxes_of(110, 100, 50), np.zeros(50, int))
    assert coverage(VOC, objects) == coverage(fit(objects), objects) == 1


def test_clusters_of_sizes():
    groups = [(20, 20), (40, 40), (80, 80), (120, 120), (180, 180), (240, 240)]
    size = np.repeat(np.array(groups, float), 10, axis=0)
    start = kmeans_start(Objects(np.concatenate([np.zeros_like(size), size], axis=1), np.full(60, 1 / 60)))
    np.testing.assert_allclose(start.sizes[:6], [20, 40, 80, 120, 180, 240], atol=1)
    assert start.ratios == VOC.ratios


def test_a_single_object():
    assert coverage(fit(objects := objects_of(boxes_of(7, 7, 1), np.zeros(1, int))), objects) in (0, 1)


def test_fitted_sizes_are_a_valid_configuration():
    """For objects of nearly equal size, the rounded sizes still rise."""
    rng = np.random.default_rng(20)
    count = int(rng.integers(1, 5))
    size = rng.uniform(4, 60, (1, 2)) * rng.uniform(0.98, 1.02, (count, 2))
    corner = rng.uniform(0, 300 - size)
    found = fit(objects_of(np.concatenate([corner, corner + size], axis=1) / 300, np.zeros(count, int)))
    assert spec_of(ModelConfig.model_validate({"dboxes": found.to_plain()}).dboxes) == spec_of(found)


def test_specs_by_name_and_by_sizes():
    assert spec_of("coco") == named_specs()["coco"]
    assert torch.equal(make_dbox_list(spec_of(VOC)), make_dbox_list(SSD300_VOC))
