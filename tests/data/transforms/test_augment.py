"""Statistics of augmentation over thousands of draws."""

from collections import Counter

import numpy as np
import pytest

from data.transforms import augment
from data.transforms.augment import (
    INTERPOLATIONS,
    Crop,
    Photometric,
    draw_augmentation,
    no_augmentation,
    overlaps,
    relative_boxes,
)
from ssd.config.schema import AugmentConfig
from tests.helpers.boxes import BOXES, HEIGHT, WIDTH, rng

NONE = AugmentConfig(photometric=False, expand=False, crop=False, mirror=False)


def plans(count: int, switches: AugmentConfig, boxes: np.ndarray = BOXES):
    return [draw_augmentation(rng(i), WIDTH, HEIGHT, boxes, switches) for i in range(count)]


def crop_only(**others: bool) -> AugmentConfig:
    return AugmentConfig(photometric=False, expand=False, mirror=False, crop=True, **others)


def test_without_augmentation_the_photo_is_unchanged():
    plan, plain = draw_augmentation(rng(0), WIDTH, HEIGHT, BOXES, NONE), no_augmentation(WIDTH, HEIGHT, BOXES)
    assert plan.crop == plain.crop == Crop(0, 0, WIDTH, HEIGHT)
    np.testing.assert_array_equal(plan.boxes, plain.boxes)
    np.testing.assert_allclose(plan.boxes, BOXES / [WIDTH, HEIGHT, WIDTH, HEIGHT], rtol=1e-6)
    assert plan.photometric == Photometric()


def test_a_sample_depends_only_on_its_seed():
    for i in range(50):
        first, second = (draw_augmentation(rng(i), WIDTH, HEIGHT, BOXES, AugmentConfig()) for _ in range(2))
        assert first[:4] == second[:4]
        np.testing.assert_array_equal(first.boxes, second.boxes)
    crops = {plan.crop for plan in plans(50, AugmentConfig())}
    assert len(crops) > 35


PAPER_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
OVERLAP_BINS = (0, *PAPER_OVERLAPS, 1)


def expected_overlaps() -> np.ndarray:
    """Simulate the shares of patches per overlap with an object that fills the photo, over seven equally frequent modes. One of
    them, the whole photo, is left out."""
    generator = np.random.default_rng(1)
    scale, part, left, top = generator.random((4, 400_000))
    scale = 0.3 + 0.7 * scale
    narrowest, widest = np.maximum(0.5, scale**2), np.minimum(2, 1 / scale**2)
    aspect = narrowest + (widest - narrowest) * part
    width, height = scale * np.sqrt(aspect), scale / np.sqrt(aspect)
    x, y = left * (1 - width), top * (1 - height)
    holds_center = (x <= 0.5) & (x + width > 0.5) & (y <= 0.5) & (y + height > 0.5)
    shares = np.zeros(len(OVERLAP_BINS) - 1)
    for least in (*PAPER_OVERLAPS, 0):
        counts, _ = np.histogram((width * height)[holds_center & (width * height >= least)], OVERLAP_BINS)
        shares += counts / counts.sum() / 7
    return shares


def test_crop_modes_are_equally_frequent():
    """Measured by the overlaps of the patches with an object that fills the photo."""
    assert sorted(mode for mode in augment.CROP_MODES if mode) == list(PAPER_OVERLAPS)
    boxes = np.array([[0, 0, WIDTH, HEIGHT]], np.float32)
    crops = [augment._draw_crop(rng(i), Crop(0, 0, WIDTH, HEIGHT), boxes) for i in range(2800)]
    patches = [crop for crop in crops if crop != (0, 0, WIDTH, HEIGHT)]
    assert abs(len(crops) - len(patches) - 400) < 5 * np.sqrt(400)
    counts, _ = np.histogram(overlaps(np.array(patches), boxes)[:, 0], OVERLAP_BINS)
    expected = len(crops) * expected_overlaps()
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected) + 5).all()


def test_any_patch_is_among_the_modes():
    """If the object is too small for every least overlap, patches are as frequent as the whole photo."""
    boxes = np.array([[WIDTH / 2 - 4, HEIGHT / 2 - 4, WIDTH / 2 + 4, HEIGHT / 2 + 4]], np.float32)
    crops = [augment._draw_crop(rng(i), Crop(0, 0, WIDTH, HEIGHT), boxes) for i in range(1000)]
    assert abs(crops.count(Crop(0, 0, WIDTH, HEIGHT)) - 500) < 5 * np.sqrt(250)
    assert len(set(crops)) > 400


@pytest.mark.parametrize("least", PAPER_OVERLAPS)
def test_every_patch_reaches_its_overlap(monkeypatch, least):
    monkeypatch.setattr(augment, "CROP_MODES", (least, augment.WHOLE))
    boxes = BOXES if least < 0.7 else np.array([[20, 20, 300, 220], [5, 5, 60, 60]], np.float32)
    cropped = 0
    for i in range(600):
        crop = augment._draw_crop(rng(i), Crop(0, 0, WIDTH, HEIGHT), boxes)
        if crop != (0, 0, WIDTH, HEIGHT):
            cropped += 1
            patch = np.array([crop], float)
            assert overlaps(patch, boxes).max() >= least
            centers = (boxes[:, :2] + boxes[:, 2:]) / 2
            assert ((centers >= patch[0, :2]) & (centers < patch[0, 2:])).all(axis=1).any()
    # Half of the draws try the mode first. Patches with an overlap of 0.9 are the hardest to find.
    assert cropped > 60


def test_patches_have_the_papers_scales_and_aspects():
    patches = np.concatenate([augment._draw_patches(rng(i), Crop(0, 0, 1000, 1000)) for i in range(200)])
    width, height = (patches[:, 2:] - patches[:, :2]).T / 1000
    scale, aspect = np.sqrt(width * height), width / height
    assert patches.min() >= 0
    assert patches.max() <= 1000
    assert scale.min() > 0.29
    assert scale.max() <= 1.001
    assert aspect.min() > 0.49
    assert aspect.max() < 2.02
    assert (aspect >= scale**2 - 0.02).all()
    assert (aspect <= 1 / scale**2 + 0.02).all()
    assert 0.62 < scale.mean() < 0.68
    # Size, aspect and position are independent.
    free = (width < 0.9) & (height < 0.9)
    patches, width, height, scale, aspect = (values[free] for values in (patches, width, height, scale, aspect))
    lowest, highest = np.maximum(0.5, scale**2), np.minimum(2, 1 / scale**2)
    part = (aspect - lowest) / (highest - lowest)
    x, y = patches[:, 0] / 1000 / (1 - width), patches[:, 1] / 1000 / (1 - height)
    between = np.corrcoef(np.stack([scale, part, x, y]))
    assert np.abs(between - np.eye(4))[1:, 1:].max() < 0.05
    assert np.abs(between[0, 2:]).max() < 0.05


def test_half_of_the_draws_expand_up_to_four_times():
    expanded = [plan.crop for plan in plans(2000, AugmentConfig(photometric=False, crop=False, mirror=False))]
    ratios = np.array([(w.x2 - w.x1) / WIDTH for w in expanded])
    assert abs((ratios > 1.004).mean() - 0.5) < 0.05
    assert ratios.max() <= 4
    assert 2.3 < ratios[ratios > 1.004].mean() < 2.7
    for window in expanded:
        # One ratio for both sides, rounded to pixels.
        assert (window.x2 - window.x1) / WIDTH == pytest.approx((window.y2 - window.y1) / HEIGHT, abs=1.01 / HEIGHT)
        assert window.x1 <= 0 <= WIDTH <= window.x2
        assert window.y1 <= 0 <= HEIGHT <= window.y2


def test_mirror_and_interpolation_are_fair():
    drawn = plans(2000, AugmentConfig())
    assert abs(np.mean([plan.mirror for plan in drawn]) - 0.5) < 0.05
    counts = Counter(plan.interpolation for plan in drawn)
    assert set(counts) == set(INTERPOLATIONS)
    assert min(counts.values()) > 300


def test_photometric_draws_stay_in_the_recipes_ranges():
    drawn = [plan.photometric for plan in plans(4000, AugmentConfig())]
    for field, low, high, neutral in [
        ("brightness", -32, 32, 0.0), ("contrast", 0.5, 1.5, 1.0), ("saturation", 0.5, 1.5, 1.0), ("hue", -18, 18, 0)
    ]:  # fmt: skip
        values = np.array([getattr(plan, field) for plan in drawn])
        active = values[values != neutral]
        assert abs(len(active) / len(drawn) - 0.5) < 0.04
        assert low <= active.min() < low + (high - low) * 0.05
        assert high - (high - low) * 0.05 < active.max() <= high
    assert abs(np.mean([plan.contrast_last for plan in drawn]) - 0.5) < 0.04


def test_boxes_stay_in_the_patch():
    for plan in plans(2000, AugmentConfig()):
        assert plan.boxes.dtype == np.float32
        assert len(plan.boxes) == len(plan.kept) >= 1
        assert plan.boxes.min() >= 0
        assert plan.boxes.max() <= 1
        assert (plan.boxes[:, 2:] > plan.boxes[:, :2]).all()
        centers = (BOXES[:, :2] + BOXES[:, 2:]) / 2
        window = np.array(plan.crop)
        inside = ((centers >= window[:2]) & (centers < window[2:])).all(axis=1)
        assert plan.kept.tolist() == np.flatnonzero(inside).tolist()


def test_photos_without_objects():
    empty = np.zeros((0, 4), np.float32)
    drawn = plans(500, AugmentConfig(), empty)
    assert all(plan.boxes.shape == (0, 4) for plan in drawn)
    assert len({plan.crop for plan in drawn}) > 200


def test_mirrored_data_gives_mirrored_boxes():
    window = Crop(30, 20, 250, 200)
    straight, mirrored = relative_boxes(BOXES, window, False), relative_boxes(BOXES, window, True)
    np.testing.assert_allclose(mirrored[:, [2, 0]], 1 - straight[:, [0, 2]], atol=1e-6)
    np.testing.assert_array_equal(mirrored[:, [1, 3]], straight[:, [1, 3]])


def test_flipped_data_gives_flipped_boxes():
    window = Crop(-10, -20, WIDTH + 30, HEIGHT)
    straight, flipped = relative_boxes(BOXES, window), relative_boxes(BOXES, window, flip=True)
    np.testing.assert_allclose(flipped[:, [3, 1]], 1 - straight[:, [1, 3]], atol=1e-6)
    np.testing.assert_array_equal(flipped[:, [0, 2]], straight[:, [0, 2]])


def test_flip_draws_last_and_only_if_it_is_on():
    flips = 0
    for i in range(400):
        generator, other = rng(i), rng(i)
        plain = draw_augmentation(generator, WIDTH, HEIGHT, BOXES, AugmentConfig())
        flipped = draw_augmentation(other, WIDTH, HEIGHT, BOXES, AugmentConfig(flip=True))
        assert plain[:4] == flipped[:4]
        np.testing.assert_array_equal(plain.kept, flipped.kept)
        assert not plain.flip
        assert flipped.flip == (generator.random() < 0.5)
        flips += flipped.flip
    assert abs(flips - 200) < 5 * 10  # five standard deviations
