"""Augmentation of training samples: photometric distortion, expansion, IoU crop, resize, mirror (SSD paper, section 2.2
and 3.6; ssd_pascal.py and im_transforms.cpp for the parameters).

It is done in two steps. `draw_plan` decides here, with boxes and random numbers alone. `data.render` then touches the pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

# 8-bit steps; Caffe's distort_param in ssd_pascal.py. Each distortion happens with probability 1/2.
BRIGHTNESS = 32  # added, at most this much either way
CONTRAST = (0.5, 1.5)  # factor
SATURATION = (0.5, 1.5)  # factor
HUE = 18  # added, of 180
EXPANSION = (1.0, 4.0)  # canvas side over photo side
MIN_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
WHOLE, ANY = 0.0, None  # the two crop modes beside the five least overlaps
CROP_MODES = (WHOLE, *MIN_OVERLAPS, ANY)
CROP_TRIES = 50  # a mode
CROP_SCALE = (0.3, 1.0)
CROP_ASPECT = (0.5, 2.0)
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


@dataclass(frozen=True)
class Switches:
    """Which parts of the augmentation are on."""

    photometric: bool = True
    expand: bool = True
    crop: bool = True
    mirror: bool = True


class Window(NamedTuple):
    """A rectangle in the photo's pixels, which may reach beyond the photo; edges, counted from 0."""

    x1: int
    y1: int
    x2: int
    y2: int


class Photometric(NamedTuple):
    """Colour distortion on 8-bit values; a neutral entry does nothing."""

    brightness: float = 0.0  # added
    contrast: float = 1.0  # factor
    contrast_last: bool = False  # after saturation and hue instead of before
    saturation: float = 1.0  # factor
    hue: int = 0  # added, of 180


class Plan(NamedTuple):
    """All that was decided for one sample."""

    window: Window
    mirror: bool
    interpolation: int
    photometric: Photometric
    boxes: np.ndarray  # [m, 4] float32 corners relative to the output
    kept: np.ndarray  # [m] int64: which of the objects given these are


def draw_plan(rng: np.random.Generator, width: int, height: int, boxes: np.ndarray, switches: Switches) -> Plan:
    """Draws the augmentation of one photo.

    Args:
        rng: where all the randomness comes from.
        width: of the photo, pixels.
        height: of the photo, pixels.
        boxes: edges `[G, 4]` in the photo's pixels.
        switches: the parts that are on.
    """
    photometric = _draw_photometric(rng) if switches.photometric else Photometric()
    canvas = Window(0, 0, width, height)
    if switches.expand and rng.random() < 0.5:
        canvas = _draw_expansion(rng, width, height)
    window = _draw_crop(rng, canvas, boxes) if switches.crop else canvas
    interpolation = INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
    mirror = bool(switches.mirror and rng.random() < 0.5)
    kept = np.flatnonzero(_centers_inside(boxes, np.array([window]))[0])
    relative = relative_boxes(boxes[kept], window, mirror)
    whole = (relative[:, 2] > relative[:, 0]) & (relative[:, 3] > relative[:, 1])
    return Plan(window, mirror, interpolation, photometric, relative[whole], kept[whole])


def plain_plan(width: int, height: int, boxes: np.ndarray) -> Plan:
    """No augmentation: the whole photo, as evaluation sees it."""
    window = Window(0, 0, width, height)
    return Plan(window, False, cv2.INTER_LINEAR, Photometric(), relative_boxes(boxes, window, False), np.arange(len(boxes)))


def relative_boxes(boxes: np.ndarray, window: Window, mirror: bool) -> np.ndarray:
    """Pixel edges `[m, 4]` → float32 corners relative to the window, clipped to it, and mirrored if asked for."""
    origin = np.array([window.x1, window.y1] * 2, np.float64)
    size = np.array([window.x2 - window.x1, window.y2 - window.y1] * 2, np.float64)
    relative = np.clip((boxes - origin) / size, 0, 1)
    if mirror:
        relative[:, [0, 2]] = 1 - relative[:, [2, 0]]
    return relative.astype(np.float32)


def _draw_photometric(rng: np.random.Generator) -> Photometric:
    happens = rng.random(4) < 0.5
    return Photometric(
        brightness=rng.uniform(-BRIGHTNESS, BRIGHTNESS) if happens[0] else 0.0,
        contrast=rng.uniform(*CONTRAST) if happens[1] else 1.0,
        contrast_last=bool(rng.random() < 0.5),
        saturation=rng.uniform(*SATURATION) if happens[2] else 1.0,
        hue=int(rng.integers(-HUE, HUE + 1)) if happens[3] else 0,
    )


def _draw_expansion(rng: np.random.Generator, width: int, height: int) -> Window:
    """A canvas around the photo, up to 4 times its width and height, with the photo anywhere inside."""
    ratio = rng.uniform(*EXPANSION)
    canvas_width, canvas_height = int(width * ratio), int(height * ratio)
    left = int(rng.integers(canvas_width - width + 1))
    top = int(rng.integers(canvas_height - height + 1))
    return Window(-left, -top, canvas_width - left, canvas_height - top)


def _draw_crop(rng: np.random.Generator, canvas: Window, boxes: np.ndarray) -> Window:
    """A patch of the canvas by one of the seven modes, drawn alike; where 50 tries find none, by another mode.

    A patch has to hold the centre of an object: without one the sample would teach nothing, since hard negatives are
    mined in proportion to positives. A photo without objects is cropped at will.
    """
    for mode in rng.permutation(len(CROP_MODES)):
        least = CROP_MODES[mode]
        if least == WHOLE:
            return canvas
        patches = _draw_patches(rng, canvas)
        if not len(boxes):
            if least is ANY:
                return Window(*patches[0].tolist())
            continue
        fit = _centers_inside(boxes, patches).any(axis=1)
        if least is not ANY:
            fit &= overlaps(patches, boxes).max(axis=1) >= least
        if fit.any():
            return Window(*patches[fit.argmax()].tolist())
    raise AssertionError("the whole image is one of the modes")


def _draw_patches(rng: np.random.Generator, canvas: Window) -> np.ndarray:
    """`CROP_TRIES` patches of a canvas `[50, 4]`, int64 edges in the photo's pixels (sampler.cpp, SampleBBox)."""
    draws = rng.random((CROP_TRIES, 4))
    scale = CROP_SCALE[0] + draws[:, 0] * (CROP_SCALE[1] - CROP_SCALE[0])
    square = scale * scale
    narrowest, widest = np.maximum(CROP_ASPECT[0], square), np.minimum(CROP_ASPECT[1], 1 / square)
    root = np.sqrt(narrowest + draws[:, 1] * (widest - narrowest))  # of the aspect
    size = np.stack([scale * root, scale / root], axis=1)  # [50, 2] of the canvas
    corner = draws[:, 2:] * (1 - size)
    canvas_size = np.array([canvas.x2 - canvas.x1, canvas.y2 - canvas.y1])
    low = np.minimum(np.rint(corner * canvas_size).astype(np.int64), canvas_size - 1)
    high = np.minimum(np.maximum(np.rint((corner + size) * canvas_size).astype(np.int64), low + 1), canvas_size)
    return np.concatenate([low, high], axis=1) + np.array([canvas.x1, canvas.y1] * 2)


def _centers_inside(boxes: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Whether the centre of each box lies in each patch: `[G, 4], [T, 4] → [T, G]` bool."""
    x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
    x1, y1, x2, y2 = patches.T[..., None]
    return (x >= x1) & (y >= y1) & (x < x2) & (y < y2)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Jaccard overlap of boxes in pixel edges: `[T, 4], [G, 4] → [T, G]`."""
    ax1, ay1, ax2, ay2 = a.T[..., None]
    bx1, by1, bx2, by2 = b.T
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    return intersection / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection)


def reduced_plan(plan: Plan, width: int, height: int, image: np.ndarray) -> Plan:
    """The same plan for a photo that was made smaller, to its nearest pixel.

    Args:
        plan: of the photo as it was.
        width: of the photo as it was, pixels.
        height: likewise.
        image: `[H, W, 3]`, the photo as it is.
    """
    if image.shape[:2] == (height, width):
        return plan
    x, y = image.shape[1] / width, image.shape[0] / height
    x1, y1, x2, y2 = plan.window
    return plan._replace(window=Window(round(x1 * x), round(y1 * y), round(x2 * x), round(y2 * y)))
