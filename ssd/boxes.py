"""Boxes: corner and centre form, overlap, and the offsets that the network predicts.

Every box is relative to the image (0..1) unless a docstring says pixels.
"""

import numpy as np
import torch
from torch import Tensor

NO_FLOAT64 = {"mps"}  # device types without float64, for which the CPU matches and decodes
VARIANCES = (0.1, 0.2)

# Smaller widths and heights count as this in `encode`: a hundredth of a pixel in an image 10,000 pixels wide.
MIN_SIZE = 1e-6


def to_corners(boxes: Tensor) -> Tensor:
    """Convert centre form (cx, cy, w, h) `[..., 4]` to corner form (x1, y1, x2, y2) `[..., 4]`."""
    centers, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centers - half, centers + half], dim=-1)


def to_centers(boxes: Tensor) -> Tensor:
    """Convert corner form (x1, y1, x2, y2) `[..., 4]` to centre form (cx, cy, w, h) `[..., 4]`."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def edges_to_voc(boxes: np.ndarray) -> np.ndarray:
    """Convert 0-based pixel edges `[..., 4]` to VOC's 1-based inclusive pixels.

    A box of the first pixel has the edges (0, 0, 1, 1) and is (1, 1, 1, 1) in VOC.
    """
    return boxes + np.array([1, 1, 0, 0], boxes.dtype)


def voc_to_edges(boxes: np.ndarray) -> np.ndarray:
    """Convert VOC's 1-based inclusive pixels `[..., 4]` to 0-based pixel edges: the inverse of `edges_to_voc`."""
    return boxes - np.array([1, 1, 0, 0], boxes.dtype)


def area(boxes: Tensor) -> Tensor:
    """Return the areas `[...]` of corner boxes `[..., 4]`; 0 for inverted boxes."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the Jaccard overlap of every box in `a` with every box in `b`.

    Args:
        a: corners `[N, 4]`.
        b: corners `[M, 4]`, in the same unit as `a`.

    Returns:
        `[N, M]`, in 0..1. Boxes without area have overlap 0, never NaN.
    """
    # One contiguous plane per coordinate instead of an [N, M, 2] table: four times as fast.
    ax1, ay1, ax2, ay2 = a.T.contiguous()[..., None]  # [N, 1] each
    bx1, by1, bx2, by2 = b.T.contiguous()  # [M] each
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)  # [N, M]
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width * height
    union = (area(a)[:, None] + area(b)).sub_(intersection)
    return intersection / union.clamp_(min=torch.finfo(union.dtype).tiny)


def encode(corners: Tensor, dboxes: Tensor, variances: tuple[float, float] = VARIANCES) -> Tensor:
    """Return the offsets from DBoxes to boxes (SSD paper, section 2.2, with the variances of Caffe SSD).

    Args:
        corners: boxes (x1, y1, x2, y2) `[N, 4]`; batch dimensions in front are allowed.
        dboxes: DBoxes (cx, cy, w, h) `[N, 4]`.
        variances: divisors of the centre and of the size offsets.

    Returns:
        Offsets `[N, 4]`. Widths and heights below 1e-6 count as 1e-6, so that the result is finite.
    """
    boxes = to_centers(corners)
    center = (boxes[..., :2] - dboxes[..., :2]) / (dboxes[..., 2:] * variances[0])
    size = torch.log(boxes[..., 2:].clamp(min=MIN_SIZE) / dboxes[..., 2:]) / variances[1]
    return torch.cat([center, size], dim=-1)


def decode(offsets: Tensor, dboxes: Tensor, variances: tuple[float, float] = VARIANCES) -> Tensor:
    """Return the boxes at predicted offsets from DBoxes: the inverse of `encode`.

    Args:
        offsets: `[N, 4]`; batch dimensions in front are allowed.
        dboxes: DBoxes (cx, cy, w, h) `[N, 4]`.
        variances: as in `encode`.

    Returns:
        Corners `[N, 4]`, not clipped to the image.
    """
    center = dboxes[..., :2] + offsets[..., :2] * variances[0] * dboxes[..., 2:]
    size = dboxes[..., 2:] * torch.exp(offsets[..., 2:] * variances[1])
    return torch.cat([center - size / 2, center + size / 2], dim=-1)
