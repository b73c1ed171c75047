"""Augmentation, by its behaviour over thousands of draws."""

from collections import Counter

import cv2
import numpy as np
import pytest

from data import augment
from data.augment import (
    INTERPOLATIONS,
    MIN_OVERLAPS,
    Photometric,
    Switches,
    Window,
    distort,
    draw_plan,
    overlaps,
    plain_plan,
    relative_boxes,
    render,
)

FILL = (124, 116, 104)
NONE = Switches(photometric=False, expand=False, crop=False, mirror=False)
BOXES = np.array([[40, 30, 160, 150], [220, 90, 300, 230], [10, 200, 60, 236]], np.float32)
WIDTH, HEIGHT = 320, 240


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng((9, 0, seed))


def plans(count: int, switches: Switches, boxes: np.ndarray = BOXES):
    return [draw_plan(rng(i), WIDTH, HEIGHT, boxes, switches) for i in range(count)]


def crop_only(**others: bool) -> Switches:
    return Switches(photometric=False, expand=False, mirror=False, crop=True, **others)


def test_all_off_is_the_plain_photo():
    plan, plain = draw_plan(rng(0), WIDTH, HEIGHT, BOXES, NONE), plain_plan(WIDTH, HEIGHT, BOXES)
    assert plan.window == plain.window == Window(0, 0, WIDTH, HEIGHT)
    np.testing.assert_array_equal(plan.boxes, plain.boxes)
    np.testing.assert_allclose(plan.boxes, BOXES / [WIDTH, HEIGHT, WIDTH, HEIGHT], rtol=1e-6)
    assert plan.photometric == Photometric()


def test_a_sample_depends_on_its_seed_alone():
    for i in range(50):
        first, second = (draw_plan(rng(i), WIDTH, HEIGHT, BOXES, Switches()) for _ in range(2))
        assert first[:4] == second[:4]
        np.testing.assert_array_equal(first.boxes, second.boxes)
    windows = {plan.window for plan in plans(50, Switches())}
    assert len(windows) > 35


OVERLAP_BINS = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)


def expected_overlaps() -> np.ndarray:
    """Shares of the patches by overlap with an object that fills the photo, by a simulation: the seven modes alike,
    one of them the whole photo, which is left out.
    """
    generator = np.random.default_rng(1)
    scale, part, left, top = generator.random((4, 400_000))
    scale = 0.3 + 0.7 * scale
    narrowest, widest = np.maximum(0.5, scale**2), np.minimum(2, 1 / scale**2)
    aspect = narrowest + (widest - narrowest) * part
    width, height = scale * np.sqrt(aspect), scale / np.sqrt(aspect)
    x, y = left * (1 - width), top * (1 - height)
    holds_center = (x <= 0.5) & (x + width > 0.5) & (y <= 0.5) & (y + height > 0.5)
    shares = np.zeros(len(OVERLAP_BINS) - 1)
    for least in (0.1, 0.3, 0.5, 0.7, 0.9, 0):
        counts, _ = np.histogram((width * height)[holds_center & (width * height >= least)], OVERLAP_BINS)
        shares += counts / counts.sum() / 7
    return shares


def test_each_crop_mode_is_used_as_often_as_any_other():
    """What the modes leave: the overlaps of the patches with an object that fills the photo."""
    boxes = np.array([[0, 0, WIDTH, HEIGHT]], np.float32)
    windows = [augment._draw_crop(rng(i), Window(0, 0, WIDTH, HEIGHT), boxes) for i in range(2800)]
    patches = [window for window in windows if window != (0, 0, WIDTH, HEIGHT)]
    assert abs(len(windows) - len(patches) - 400) < 5 * np.sqrt(400)
    counts, _ = np.histogram(overlaps(np.array(patches), boxes)[:, 0], OVERLAP_BINS)
    expected = len(windows) * expected_overlaps()
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected) + 5).all()


def test_any_patch_is_one_of_the_modes():
    """Around an object too small for every least overlap a patch is drawn as often as the whole photo."""
    boxes = np.array([[WIDTH / 2 - 4, HEIGHT / 2 - 4, WIDTH / 2 + 4, HEIGHT / 2 + 4]], np.float32)
    windows = [augment._draw_crop(rng(i), Window(0, 0, WIDTH, HEIGHT), boxes) for i in range(1000)]
    assert abs(windows.count(Window(0, 0, WIDTH, HEIGHT)) - 500) < 5 * np.sqrt(250)
    assert len(set(windows)) > 400


@pytest.mark.parametrize("least", MIN_OVERLAPS)
def test_every_patch_meets_its_overlap(monkeypatch, least):
    monkeypatch.setattr(augment, "CROP_MODES", (least, augment.WHOLE))
    boxes = BOXES if least < 0.7 else np.array([[20, 20, 300, 220], [5, 5, 60, 60]], np.float32)
    cropped = 0
    for i in range(600):
        window = augment._draw_crop(rng(i), Window(0, 0, WIDTH, HEIGHT), boxes)
        if window != (0, 0, WIDTH, HEIGHT):
            cropped += 1
            patch = np.array([window], float)
            assert overlaps(patch, boxes).max() >= least
            centers = (boxes[:, :2] + boxes[:, 2:]) / 2
            assert ((centers >= patch[0, :2]) & (centers < patch[0, 2:])).all(axis=1).any()
    # The mode is tried first in half of the draws; 0.9 is the hardest to find a patch for.
    assert cropped > 60


def test_patches_have_the_scales_and_aspects_of_the_paper():
    patches = np.concatenate([augment._draw_patches(rng(i), Window(0, 0, 1000, 1000)) for i in range(200)])
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
    # Size, aspect and place are drawn independently.
    free = (width < 0.9) & (height < 0.9)
    patches, width, height, scale, aspect = (values[free] for values in (patches, width, height, scale, aspect))
    lowest, highest = np.maximum(0.5, scale**2), np.minimum(2, 1 / scale**2)
    part = (aspect - lowest) / (highest - lowest)
    x, y = patches[:, 0] / 1000 / (1 - width), patches[:, 1] / 1000 / (1 - height)
    between = np.corrcoef(np.stack([scale, part, x, y]))
    assert np.abs(between - np.eye(4))[1:, 1:].max() < 0.05
    assert np.abs(between[0, 2:]).max() < 0.05


def test_expansion_happens_in_half_of_the_draws_up_to_four_times():
    expanded = [plan.window for plan in plans(2000, Switches(photometric=False, crop=False, mirror=False))]
    ratios = np.array([(w.x2 - w.x1) / WIDTH for w in expanded])
    assert abs((ratios > 1.004).mean() - 0.5) < 0.05
    assert ratios.max() <= 4
    assert 2.3 < ratios[ratios > 1.004].mean() < 2.7
    for window in expanded:
        assert window.x1 <= 0 <= WIDTH <= window.x2
        assert window.y1 <= 0 <= HEIGHT <= window.y2


def test_mirror_and_interpolation_are_fair():
    drawn = plans(2000, Switches())
    assert abs(np.mean([plan.mirror for plan in drawn]) - 0.5) < 0.05
    counts = Counter(plan.interpolation for plan in drawn)
    assert set(counts) == set(INTERPOLATIONS)
    assert min(counts.values()) > 300


def test_photometric_draws_have_the_recipe_s_ranges():
    drawn = [plan.photometric for plan in plans(4000, Switches())]
    for field, low, high, neutral in [
        ("brightness", -32, 32, 0.0), ("contrast", 0.5, 1.5, 1.0), ("saturation", 0.5, 1.5, 1.0), ("hue", -18, 18, 0)
    ]:  # fmt: skip
        values = np.array([getattr(plan, field) for plan in drawn])
        active = values[values != neutral]
        assert abs(len(active) / len(drawn) - 0.5) < 0.04
        assert low <= active.min() < low + (high - low) * 0.05
        assert high - (high - low) * 0.05 < active.max() <= high
    assert abs(np.mean([plan.contrast_last for plan in drawn]) - 0.5) < 0.04


def test_boxes_stay_in_the_patch_and_keep_their_objects():
    for plan in plans(2000, Switches()):
        assert plan.boxes.dtype == np.float32
        assert len(plan.boxes) == len(plan.kept) >= 1
        assert plan.boxes.min() >= 0
        assert plan.boxes.max() <= 1
        assert (plan.boxes[:, 2:] > plan.boxes[:, :2]).all()
        centers = (BOXES[:, :2] + BOXES[:, 2:]) / 2
        window = np.array(plan.window)
        inside = ((centers >= window[:2]) & (centers < window[2:])).all(axis=1)
        assert plan.kept.tolist() == np.flatnonzero(inside).tolist()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2000, 7), (3, 2)])
def test_extreme_photos(size):
    width, height = size
    image = np.full((height, width, 3), 77, np.uint8)
    boxes = np.array([[0, 0, width, height]], np.float32)
    out = np.zeros((300, 300, 3), np.uint8)
    for i in range(200):
        plan = draw_plan(rng(i), width, height, boxes, Switches())
        render(image, plan, FILL, out)
        assert np.isfinite(plan.boxes).all()


def test_photos_without_objects():
    empty = np.zeros((0, 4), np.float32)
    drawn = plans(500, Switches(), empty)
    assert all(plan.boxes.shape == (0, 4) for plan in drawn)
    assert len({plan.window for plan in drawn}) > 200


def test_mirrored_data_gives_mirrored_boxes():
    window = Window(30, 20, 250, 200)
    straight, mirrored = relative_boxes(BOXES, window, False), relative_boxes(BOXES, window, True)
    np.testing.assert_allclose(mirrored[:, [2, 0]], 1 - straight[:, [0, 2]], atol=1e-6)
    np.testing.assert_array_equal(mirrored[:, [1, 3]], straight[:, [1, 3]])


@pytest.mark.parametrize("seed", range(120))
def test_boxes_follow_the_pixels(seed):
    """A coloured rectangle, augmented, is found again where its box says."""
    generator = np.random.default_rng(seed)
    width, height = generator.integers(150, 500, 2).tolist()
    x1, y1 = (int(generator.integers(0, side // 2)) for side in (width, height))
    x2, y2 = x1 + int(generator.integers(40, width // 2)), y1 + int(generator.integers(40, height // 2))
    image = np.full((height, width, 3), 20, np.uint8)
    image[y1:y2, x1:x2] = (250, 20, 20)
    plan = draw_plan(generator, width, height, np.array([[x1, y1, x2, y2]], np.float32), Switches(photometric=False))
    out = np.zeros((300, 300, 3), np.uint8)
    render(image, plan, (20, 20, 20), out)
    red = out[..., 0].astype(int) > 135
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    source_pixel = 300 / min(plan.window.x2 - plan.window.x1, plan.window.y2 - plan.window.y1)
    np.testing.assert_allclose(plan.boxes[0] * 300, seen, atol=1.6 + source_pixel)


def step_by_step(image: np.ndarray, plan: augment.Plan, size: int) -> np.ndarray:
    """The augmentation as it is usually written: distort, paint a canvas, crop, resize, mirror."""
    x1, y1, x2, y2 = plan.window
    height, width = image.shape[:2]
    left, top = max(0, -x1), max(0, -y1)
    canvas = np.full((max(height, y2) + top, max(width, x2) + left, 3), FILL, np.uint8)
    canvas[top : top + height, left : left + width] = distort(image, plan.photometric)
    patch = canvas[y1 + top : y2 + top, x1 + left : x2 + left]
    patch = cv2.resize(patch, (size, size), interpolation=plan.interpolation)
    return patch[:, ::-1] if plan.mirror else patch


def test_one_resampling_equals_step_by_step():
    generator = np.random.default_rng(0)
    coarse = generator.uniform(30, 220, (6, 8, 3)).astype(np.float32)
    image = np.clip(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    out = np.zeros((300, 300, 3), np.uint8)
    means = []
    for i in range(400):
        plan = draw_plan(rng(i), WIDTH, HEIGHT, BOXES, Switches())
        render(image, plan, FILL, out)
        difference = np.abs(out.astype(int) - step_by_step(image, plan, 300))
        means.append(difference.mean())
        # Half a pixel of shift, at the border of the photo and on slopes, is all there may be.
        assert (difference.max(axis=2) > 40).mean() < 0.03
        assert difference.mean() < 6
    assert np.mean(means) < 1.5


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (120, 90), (700, 500)])
def test_the_interpolation_is_the_one_that_was_drawn(size):
    """On noise, where no two of them agree."""
    width, height = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = np.zeros((len(INTERPOLATIONS), 300, 300, 3), np.uint8)
    plan = plain_plan(width, height, BOXES)
    for interpolation, rendered in zip(INTERPOLATIONS, out, strict=True):
        render(image, plan._replace(interpolation=interpolation), FILL, rendered)
        difference = rendered.astype(int) - cv2.resize(image, (300, 300), interpolation=interpolation)
        assert np.abs(difference).max() <= 1
    assert len({rendered.tobytes() for rendered in out}) >= 4  # area is linear where pixels are added


def test_distortion_equals_plain_arithmetic_in_8_bits():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    def to_bytes(values: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)

    for photometric in (
        Photometric(brightness=20.3),
        Photometric(contrast=1.4142),
        Photometric(brightness=-31.9, contrast=0.6181, contrast_last=True),
        Photometric(saturation=1.3103, hue=-17),
        Photometric(brightness=10.0, contrast=0.7071, contrast_last=True, saturation=0.5, hue=18),
        Photometric(brightness=10.0, contrast=1.3103, saturation=1.4983, hue=5),
        Photometric(),
    ):
        expected = to_bytes(pixels + photometric.brightness)
        if not photometric.contrast_last:
            expected = to_bytes(expected * photometric.contrast)
        if photometric.saturation != 1 or photometric.hue != 0:
            hsv = cv2.cvtColor(expected, cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0].astype(int) + photometric.hue) % 180
            hsv[..., 1] = to_bytes(hsv[..., 1] * photometric.saturation)
            expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if photometric.contrast_last:
            expected = to_bytes(expected * photometric.contrast)
        before = pixels.copy()
        np.testing.assert_array_equal(distort(pixels, photometric), expected)
        np.testing.assert_array_equal(pixels, before)
