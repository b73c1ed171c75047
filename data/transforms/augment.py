"""Augmentation of training samples: photometric distortion, expansion, IoU crop, resize, mirror; optionally flip.

SSD paper, sections 2.2 and 3.6; parameters from ssd_pascal.py and im_transforms.cpp. `draw_augmentation` only draws random
numbers and transforms boxes; `data.transforms.render` then transforms the pixels.

To add a transform: its entry in `AugmentConfig` (ssd/config/schema.py), what is drawn for it here, the pixels in render.py.
"""

from typing import NamedTuple

import cv2
import numpy as np

from ssd.config.schema import AugmentConfig

# In 8-bit values, as Caffe's distort_param in ssd_pascal.py. Each distortion is applied with probability 1/2.
BRIGHTNESS = 32  # largest offset, either way
CONTRAST = (0.5, 1.5)  # factor
SATURATION = (0.5, 1.5)  # factor
HUE = 18  # largest offset, of 180
EXPANSION = (1.0, 4.0)  # side of the canvas divided by side of the photo
MIN_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
WHOLE, ANY = 0.0, None  # crop modes beside the five minimum overlaps
CROP_MODES = (WHOLE, *MIN_OVERLAPS, ANY)
CROP_TRIES = 50  # per mode
CROP_SCALE = (0.3, 1.0)
CROP_ASPECT = (0.5, 2.0)
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


class Crop(NamedTuple):
    """A rectangle in the photo's pixels, which may extend beyond the photo: edges counted from 0."""

    x1: int
    y1: int
    x2: int
    y2: int


class Photometric(NamedTuple):
    """Colour distortion of 8-bit values. The defaults change nothing."""

    brightness: float = 0.0  # offset
    contrast: float = 1.0  # factor
    contrast_last: bool = False  # apply contrast after saturation and hue instead of before
    saturation: float = 1.0  # factor
    hue: int = 0  # offset, of 180


class Augmentation(NamedTuple):
    """The augmentation of one sample, as drawn."""

    crop: Crop
    mirror: bool
    interpolation: int
    photometric: Photometric
    boxes: np.ndarray  # [m, 4] float32 corners relative to the output
    kept: np.ndarray  # [m] int64: indices of the remaining objects
    flip: bool = False  # upside down


def draw_augmentation(
    rng: np.random.Generator, width: int, height: int, boxes: np.ndarray, options: AugmentConfig
) -> Augmentation:
    """Draw the augmentation of one photo.

    Args:
        rng: the only source of randomness.
        width: of the photo, pixels.
        height: of the photo, pixels.
        boxes: edges `[G, 4]` in the photo's pixels.
        options: which transforms are on.
    """
    photometric = _draw_photometric(rng) if options.photometric else Photometric()
    canvas = Crop(0, 0, width, height)
    if options.expand and rng.random() < 0.5:
        canvas = _draw_expansion(rng, width, height)
    crop = _draw_crop(rng, canvas, boxes) if options.crop else canvas
    interpolation = INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
    mirror = bool(options.mirror and rng.random() < 0.5)
    kept = np.flatnonzero(_centers_inside(boxes, np.array([crop]))[0])
    flip = bool(options.flip and rng.random() < 0.5)
    relative = relative_boxes(boxes[kept], crop, mirror, flip)
    whole = (relative[:, 2] > relative[:, 0]) & (relative[:, 3] > relative[:, 1])
    return Augmentation(crop, mirror, interpolation, photometric, relative[whole], kept[whole], flip)


def no_augmentation(width: int, height: int, boxes: np.ndarray) -> Augmentation:
    """Return an augmentation that changes nothing but the size, for evaluation."""
    crop = Crop(0, 0, width, height)
    return Augmentation(crop, False, cv2.INTER_LINEAR, Photometric(), relative_boxes(boxes, crop), np.arange(len(boxes)))


def relative_boxes(boxes: np.ndarray, crop: Crop, mirror: bool = False, flip: bool = False) -> np.ndarray:
    """Convert edges in pixels `[m, 4]` to float32 corners relative to the crop, clipped to it; mirrored, and flipped upside
    down, on request."""
    origin = np.array([crop.x1, crop.y1] * 2, np.float64)
    size = np.array([crop.x2 - crop.x1, crop.y2 - crop.y1] * 2, np.float64)
    relative = np.clip((boxes - origin) / size, 0, 1)
    if mirror:
        relative[:, [0, 2]] = 1 - relative[:, [2, 0]]
    if flip:
        relative[:, [1, 3]] = 1 - relative[:, [3, 1]]
    return relative.astype(np.float32)


def _draw_photometric(rng: np.random.Generator) -> Photometric:
    applied = rng.random(4) < 0.5
    return Photometric(
        brightness=rng.uniform(-BRIGHTNESS, BRIGHTNESS) if applied[0] else 0.0,
        contrast=rng.uniform(*CONTRAST) if applied[1] else 1.0,
        contrast_last=bool(rng.random() < 0.5),
        saturation=rng.uniform(*SATURATION) if applied[2] else 1.0,
        hue=int(rng.integers(-HUE, HUE + 1)) if applied[3] else 0,
    )


def _draw_expansion(rng: np.random.Generator, width: int, height: int) -> Crop:
    """Return a canvas up to 4 times the photo's width and height, with the photo anywhere inside."""
    ratio = rng.uniform(*EXPANSION)
    canvas_width, canvas_height = int(width * ratio), int(height * ratio)
    left = int(rng.integers(canvas_width - width + 1))
    top = int(rng.integers(canvas_height - height + 1))
    return Crop(-left, -top, canvas_width - left, canvas_height - top)


def _draw_crop(rng: np.random.Generator, canvas: Crop, boxes: np.ndarray) -> Crop:
    """Return a patch of the canvas, in one of the seven modes with equal probability; if 50 tries fail, in another mode.

    A patch must contain the centre of an object. Without objects a sample teaches nothing, since hard negatives are mined in
    proportion to positives. A photo without objects may be cropped anywhere.
    """
    for mode in rng.permutation(len(CROP_MODES)):
        min_overlap = CROP_MODES[mode]
        if min_overlap == WHOLE:
            return canvas
        patches = _draw_patches(rng, canvas)
        if not len(boxes):
            if min_overlap is ANY:
                return Crop(*patches[0].tolist())
            continue
        fit = _centers_inside(boxes, patches).any(axis=1)
        if min_overlap is not ANY:
            fit &= overlaps(patches, boxes).max(axis=1) >= min_overlap
        if fit.any():
            return Crop(*patches[fit.argmax()].tolist())
    raise AssertionError("WHOLE is one of the modes and always succeeds")


def _draw_patches(rng: np.random.Generator, canvas: Crop) -> np.ndarray:
    """Return `CROP_TRIES` patches of a canvas `[50, 4]`, int64 edges in the photo's pixels (sampler.cpp, SampleBBox)."""
    draws = rng.random((CROP_TRIES, 4))
    scale = CROP_SCALE[0] + draws[:, 0] * (CROP_SCALE[1] - CROP_SCALE[0])
    square = scale * scale
    narrowest, widest = np.maximum(CROP_ASPECT[0], square), np.minimum(CROP_ASPECT[1], 1 / square)
    root = np.sqrt(narrowest + draws[:, 1] * (widest - narrowest))  # of the aspect
    size = np.stack([scale * root, scale / root], axis=1)  # [50, 2] relative to the canvas
    corner = draws[:, 2:] * (1 - size)
    canvas_size = np.array([canvas.x2 - canvas.x1, canvas.y2 - canvas.y1])
    low = np.minimum(np.rint(corner * canvas_size).astype(np.int64), canvas_size - 1)
    high = np.minimum(np.maximum(np.rint((corner + size) * canvas_size).astype(np.int64), low + 1), canvas_size)
    return np.concatenate([low, high], axis=1) + np.array([canvas.x1, canvas.y1] * 2)


def _centers_inside(boxes: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Return whether the centre of each box lies in each patch: `[G, 4], [T, 4] → [T, G]` bool."""
    x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
    x1, y1, x2, y2 = patches.T[..., None]
    return (x >= x1) & (y >= y1) & (x < x2) & (y < y2)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Jaccard overlap of boxes given as pixel edges: `[T, 4], [G, 4] → [T, G]`."""
    ax1, ay1, ax2, ay2 = a.T[..., None]
    bx1, by1, bx2, by2 = b.T
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    return intersection / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection)


def scale_augmentation(augmentation: Augmentation, width: int, height: int, image: np.ndarray) -> Augmentation:
    """Scale an augmentation's crop to a reduced photo, rounded to its pixels.

    Args:
        augmentation: drawn for the original photo.
        width: of the original photo, pixels.
        height: of the original photo, pixels.
        image: `[H, W, 3]`, the reduced photo.
    """
    if image.shape[:2] == (height, width):
        return augmentation
    x, y = image.shape[1] / width, image.shape[0] / height
    x1, y1, x2, y2 = augmentation.crop
    return augmentation._replace(crop=Crop(round(x1 * x), round(y1 * y), round(x2 * x), round(y2 * y)))
