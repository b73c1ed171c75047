"""Rendering, compared with single steps and with the objects' places."""

import cv2
import numpy as np
import pytest

from data.transforms.augment import INTERPOLATIONS, Augmentation, Crop, Photometric, draw_augmentation, no_augmentation
from data.transforms.render import distort, render
from ssd.config.schema import AugmentConfig
from tests.helpers.boxes import BOXES, HEIGHT, WIDTH, rng

FILL = (124, 116, 104)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("seed", range(120))
def test_boxes_match_the_pixels(seed, flip):
    """A coloured rectangle is inside its box after augmentation."""
    generator = np.random.default_rng(seed)
    width, height = generator.integers(150, 500, 2).tolist()
    x1, y1 = (int(generator.integers(0, side // 2)) for side in (width, height))
    x2, y2 = x1 + int(generator.integers(40, width // 2)), y1 + int(generator.integers(40, height // 2))
    image = np.full((height, width, 3), 20, np.uint8)
    image[y1:y2, x1:x2] = (250, 20, 20)
    box = np.array([[x1, y1, x2, y2]], np.float32)
    plan = draw_augmentation(generator, width, height, box, AugmentConfig(photometric=False, flip=flip))
    out = np.zeros((300, 300, 3), np.uint8)
    render(image, plan, (20, 20, 20), out)
    red = out[..., 0].astype(int) > 135
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    visible = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    source_pixel = 300 / min(plan.crop.x2 - plan.crop.x1, plan.crop.y2 - plan.crop.y1)
    np.testing.assert_allclose(plan.boxes[0] * 300, visible, atol=1.6 + source_pixel)


def step_by_step(image: np.ndarray, plan: Augmentation, size: int) -> np.ndarray:
    """Augment in the usual steps: distort, paint a canvas, crop, resize, mirror, flip."""
    x1, y1, x2, y2 = plan.crop
    height, width = image.shape[:2]
    left, top = max(0, -x1), max(0, -y1)
    canvas = np.full((max(height, y2) + top, max(width, x2) + left, 3), FILL, np.uint8)
    canvas[top : top + height, left : left + width] = distort(image, plan.photometric)
    patch = canvas[y1 + top : y2 + top, x1 + left : x2 + left]
    patch = cv2.resize(patch, (size, size), interpolation=plan.interpolation)
    patch = patch[:, ::-1] if plan.mirror else patch
    return patch[::-1] if plan.flip else patch


@pytest.mark.parametrize("flip", [False, True])
def test_one_resampling_equals_step_by_step(flip):
    generator = np.random.default_rng(0)
    coarse = generator.uniform(30, 220, (6, 8, 3)).astype(np.float32)
    image = np.clip(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    out = np.zeros((300, 300, 3), np.uint8)
    means = []
    for i in range(400):
        plan = draw_augmentation(rng(i), WIDTH, HEIGHT, BOXES, AugmentConfig(flip=flip))
        render(image, plan, FILL, out)
        difference = np.abs(out.astype(int) - step_by_step(image, plan, 300))
        means.append(difference.mean())
        # Only half a pixel of shift is allowed, at the border of the photo and on slopes.
        assert (difference.max(axis=2) > 40).mean() < 0.03
        assert difference.mean() < 6
    assert np.mean(means) < 1.5


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (120, 90), (600, 500)])
def test_the_drawn_interpolation_is_used(size):
    """On noise, all interpolations differ."""
    width, height = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = np.zeros((len(INTERPOLATIONS), 300, 300, 3), np.uint8)
    plan = no_augmentation(width, height, BOXES)
    for interpolation, rendered in zip(INTERPOLATIONS, out, strict=True):
        render(image, plan._replace(interpolation=interpolation), FILL, rendered)
        difference = rendered.astype(int) - cv2.resize(image, (300, 300), interpolation=interpolation)
        assert np.abs(difference).max() <= 1
    assert len({rendered.tobytes() for rendered in out}) >= 4  # area equals linear when enlarging


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


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2000, 7), (3, 2)])
def test_extreme_photos(size):
    width, height = size
    image = np.full((height, width, 3), 77, np.uint8)
    boxes = np.array([[0, 0, width, height]], np.float32)
    out = np.zeros((300, 300, 3), np.uint8)
    for i in range(200):
        plan = draw_augmentation(rng(i), width, height, boxes, AugmentConfig())
        render(image, plan, FILL, out)
        assert np.isfinite(plan.boxes).all()


@pytest.mark.parametrize(("left", "column"), [(0, 0), (1502, 150), (2999, 299)])
def test_a_photo_thinner_than_an_output_pixel_becomes_one_pixel_wide(left, column):
    """The photo has one column, at this distance from the left edge of a window of 3000."""
    image, out = np.full((300, 1, 3), 77, np.uint8), np.zeros((300, 300, 3), np.uint8)
    plan = no_augmentation(1, 300, np.zeros((0, 4)))._replace(crop=Crop(-left, 0, 3000 - left, 300))
    render(image, plan, FILL, out)
    expected = np.tile(np.array(FILL, np.uint8), (300, 300, 1))
    expected[:, column] = 77
    np.testing.assert_array_equal(out, expected)
