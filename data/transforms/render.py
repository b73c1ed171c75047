"""The pixels of a sample, as `data.augment` planned them.

The window that expansion and crop leave, which may reach beyond the photo, is resized once, straight into the output, instead
of painting a canvas of up to 16 times the photo to throw most of it away.
"""

import cv2
import numpy as np

from data.transforms.augment import Photometric, Plan


def render(image: np.ndarray, plan: Plan, fill: tuple[int, int, int], out: np.ndarray) -> None:
    """Writes the window of a photo into `out`, resized to it without keeping the aspect.

    Args:
        image: `[H, W, 3]` uint8, RGB.
        plan: what to do with it.
        fill: colour of what lies outside the photo.
        out: `[S, S, 3]` uint8, written into.
    """
    height, width = image.shape[:2]
    window, size = plan.window, out.shape[0]
    x1, x2 = max(window.x1, 0), min(window.x2, width)
    y1, y2 = max(window.y1, 0), min(window.y2, height)
    if x1 >= x2 or y1 >= y2:
        out[:] = fill
        return
    # Where the photo's part of the window lies in the output, to the nearest pixel.
    left, right = _place(x1, x2, window.x1, window.x2, size)
    top, bottom = _place(y1, y2, window.y1, window.y2, size)
    part = image[y1:y2, x1:x2]
    # Colours are distorted where there are fewer pixels, before or after the resize: the two differ by no more than the
    # interpolation's own error.
    early = part.shape[0] * part.shape[1] <= (bottom - top) * (right - left)
    if early:
        part = distort(part, plan.photometric)
    part = _resize(part, (right - left, bottom - top), plan.interpolation)
    if not early:
        part = distort(part, plan.photometric)
    if plan.mirror:
        part = cv2.flip(part, 1)
        left, right = size - right, size - left
    if (right - left, bottom - top) == (size, size):
        out[:] = part
    else:
        cv2.copyMakeBorder(part, top, size - bottom, left, size - right, cv2.BORDER_CONSTANT, out, fill)


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """`cv2.resize`; OpenCV's Lanczos is twice as fast on floats as on bytes, at the same result within rounding."""
    if interpolation != cv2.INTER_LANCZOS4:
        return cv2.resize(image, size, interpolation=interpolation)
    return _to_bytes(cv2.resize(image.astype(np.float32), size, interpolation=interpolation))


def _place(low: int, high: int, window_low: int, window_high: int, size: int) -> tuple[int, int]:
    """The output pixels, at least one, that a stretch of the window falls on."""
    scale = size / (window_high - window_low)
    start = min(round((low - window_low) * scale), size - 1)
    return start, max(start + 1, round((high - window_low) * scale))


def distort(image: np.ndarray, photometric: Photometric) -> np.ndarray:
    """Photometric distortion of uint8 RGB; each step rounds to 8 bits, as Caffe's does."""
    if photometric.brightness:
        image = cv2.add(image, (photometric.brightness,) * 3)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if not photometric.contrast_last:
        image = _scaled(image, photometric.contrast)
    if photometric.saturation != 1.0 or photometric.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if photometric.hue:
            cv2.insertChannel(_turned(cv2.extractChannel(hsv, 0), photometric.hue), hsv, 0)
        if photometric.saturation != 1.0:
            cv2.insertChannel(_scaled(cv2.extractChannel(hsv, 1), photometric.saturation), hsv, 1)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return _scaled(image, photometric.contrast) if photometric.contrast_last else image


def _turned(hue: np.ndarray, angle: int) -> np.ndarray:
    """Hue (0 to 179) turned by -76 to 76 steps: sums stay within 8 bits. Less a full turn, what was beyond one is smaller
    than before, and what was not has wrapped around to more."""
    if angle < 0:
        return np.uint8(179) - _turned(np.uint8(179) - hue, -angle)
    turned = hue + np.uint8(angle)
    return np.minimum(turned, turned - np.uint8(180))


def _scaled(image: np.ndarray, factor: float) -> np.ndarray:
    """uint8 × factor, rounded and cut off at 255."""
    return image if factor == 1.0 else cv2.convertScaleAbs(image, alpha=factor)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    """float32 → uint8, rounded and cut off."""
    return cv2.add(image, 0.0, dtype=cv2.CV_8U)  # pyright: ignore[reportCallIssue, reportArgumentType]
