"""The pixels of an augmented sample.

The crop, which may extend beyond the photo, is resized straight into the output. Painting the expanded canvas of up to 16
times the photo would discard most of it.
"""

import cv2
import numpy as np

from data.transforms.augment import Augmentation, Photometric
from ssd.preprocessing import resize, shrink


def render(image: np.ndarray, augmentation: Augmentation, fill: tuple[int, int, int], out: np.ndarray) -> None:
    """Write an augmented photo into `out`. The crop is resized without keeping its aspect ratio.

    Args:
        image: `[H, W, 3]` uint8, RGB.
        augmentation: to apply.
        fill: colour outside the photo.
        out: `[S, S, 3]` uint8, overwritten.
    """
    height, width = image.shape[:2]
    crop, size = augmentation.crop, out.shape[0]
    x1, x2 = max(crop.x1, 0), min(crop.x2, width)
    y1, y2 = max(crop.y1, 0), min(crop.y2, height)
    if x1 >= x2 or y1 >= y2:
        out[:] = fill
        return
    # Place of the photo's part of the crop in the output, to the nearest pixel.
    left, right = _place(x1, x2, crop.x1, crop.x2, size)
    top, bottom = _place(y1, y2, crop.y1, crop.y2, size)
    part = shrink(image[y1:y2, x1:x2], size)
    # Distort colours on the smaller of the two images. The difference is within the interpolation's error.
    early = part.shape[0] * part.shape[1] <= (bottom - top) * (right - left)
    if early:
        part = distort(part, augmentation.photometric)
    part = resize(part, right - left, bottom - top, augmentation.interpolation)
    if not early:
        part = distort(part, augmentation.photometric)
    if augmentation.mirror:
        part = cv2.flip(part, 1)
        left, right = size - right, size - left
    if augmentation.flip:
        part = cv2.flip(part, 0)
        top, bottom = size - bottom, size - top
    if (right - left, bottom - top) == (size, size):
        out[:] = part
    else:
        cv2.copyMakeBorder(part, top, size - bottom, left, size - right, cv2.BORDER_CONSTANT, out, fill)


def _place(low: int, high: int, crop_low: int, crop_high: int, size: int) -> tuple[int, int]:
    """Return the output pixels, at least one, that the range low to high of the crop covers."""
    scale = size / (crop_high - crop_low)
    start = min(round((low - crop_low) * scale), size - 1)
    return start, max(start + 1, round((high - crop_low) * scale))


def distort(image: np.ndarray, photometric: Photometric) -> np.ndarray:
    """Distort uint8 RGB. Each step rounds to 8 bits, as in Caffe."""
    if photometric.brightness:
        image = cv2.add(image, (photometric.brightness,) * 3)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if not photometric.contrast_last:
        image = _scale(image, photometric.contrast)
    if photometric.saturation != 1.0 or photometric.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if photometric.hue:
            cv2.insertChannel(_rotate_hue(cv2.extractChannel(hsv, 0), photometric.hue), hsv, 0)
        if photometric.saturation != 1.0:
            cv2.insertChannel(_scale(cv2.extractChannel(hsv, 1), photometric.saturation), hsv, 1)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return _scale(image, photometric.contrast) if photometric.contrast_last else image


def _rotate_hue(hue: np.ndarray, angle: int) -> np.ndarray:
    """Rotate hue (0 to 179) by -76 to 76, so that sums stay within 8 bits.

    Subtracting a full turn of 180 makes sums beyond it smaller; others wrap around to larger values. So the minimum is right.
    """
    if angle < 0:
        return np.uint8(179) - _rotate_hue(np.uint8(179) - hue, -angle)
    rotated = hue + np.uint8(angle)
    return np.minimum(rotated, rotated - np.uint8(180))


def _scale(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply uint8 by a factor, rounded and clipped at 255."""
    return image if factor == 1.0 else cv2.convertScaleAbs(image, alpha=factor)
