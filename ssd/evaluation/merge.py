"""What is found in a photo and in its tiles, merged into the detections of the photo: for evaluation and use alike."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

# Share of a tile's side, 3 of the network's pixels: a box that comes so near to an edge within the photo is cut off by it.
EDGE = 0.01
# A box that an edge cuts off gives way to a whole one that has more than this share of its score: what the network is sure of
# is not lost for what it merely deems possible.
CUT_RANK = 0.5
FIRST = 5  # times `top_k`: boxes that are looked at first; where too few of them remain, four times as many, and so on
TABLE = 2**20  # entries of a table of overlaps that are worked out at once


class Parts(NamedTuple):
    """What the m samples of a data set show of its n photos."""

    photos: np.ndarray  # [m] int64
    windows: np.ndarray  # [m, 4] edges (x1, y1, x2, y2) in the photo's pixels, counted from 0: of the whole photo, or a tile
    in_loss: np.ndarray  # [m] bool: whether the loss counts them, as that of training does

    @classmethod
    def whole(cls, sizes: np.ndarray) -> Self:
        """Every photo as a whole, by width and height `[n, 2]`."""
        return cls(np.arange(len(sizes)), np.concatenate([np.zeros_like(sizes), sizes], axis=1), np.ones(len(sizes), bool))


class Merging:
    """The detections of a data set, merged photo by photo as soon as all windows of one are there.

    Args:
        parts: what the samples show.
        sizes: `[n, 2]` width and height of every photo, pixels.
        nms_thresh: as of `merge`.
        top_k: likewise.
    """

    def __init__(self, parts: Parts, sizes: np.ndarray, nms_thresh: float, top_k: int) -> None:
        self.parts = parts
        self.sizes = sizes
        self.nms_thresh = nms_thresh
        self.top_k = top_k
        self.counts = np.bincount(parts.photos, minlength=len(sizes))  # [n] windows of each photo
        self.waiting: defaultdict[int, dict[int, dict[str, Tensor]]] = defaultdict(dict)
        self.found: dict[int, dict[str, np.ndarray]] = {}  # in each photo, as `merge` gives it

    def add(self, index: int, detections: dict[str, Tensor]) -> None:
        """What is in sample number `index`, as `merge` takes it."""
        photo = int(self.parts.photos[index])
        self.waiting[photo][index] = detections
        if len(self.waiting[photo]) == self.counts[photo]:
            every = self.waiting.pop(photo)
            windows = self.parts.windows[list(every)]
            self.found[photo] = merge(list(every.values()), windows, self.sizes[photo], self.nms_thresh, self.top_k)


def merge(
    found: Sequence[dict[str, Tensor]], windows: np.ndarray, size: np.ndarray, nms_thresh: float, top_k: int
) -> dict[str, np.ndarray]:
    """Detections of one photo.

    Non-maximum suppression by class over all windows. An object on the edge of a tile is seen in part there and, tiles
    overlapping, whole in the next tile or in the whole photo. So a box that is cut off by an edge within the photo ranks lower,
    and goes where a higher one of its class covers more than `nms_thresh` of its own area, however small a part of the whole
    object it is.

    Args:
        found: what is in each window, as `ssd.detect.detect` gives it: boxes relative to the window.
        windows: `[m, 4]` edges (x1, y1, x2, y2) in the photo's pixels, counted from 0; where there is one, nothing is merged.
        size: `[2]` width and height of the photo, pixels.
        nms_thresh: of two boxes of one class that overlap by more, the lower one goes.
        top_k: most detections in the photo.

    Returns:
        `boxes` `[n, 4]` float32 edges in the photo's pixels, counted from 0, `labels` `[n]`, `scores` `[n]`, falling.
    """
    boxes = torch.cat([_placed(entry["boxes"].cpu(), window) for entry, window in zip(found, windows, strict=True)])
    labels, scores = (torch.cat([entry[name] for entry in found]).cpu() for name in ("labels", "scores"))
    if len(found) > 1:
        cut = torch.cat([_cut(entry["boxes"].cpu(), window, size) for entry, window in zip(found, windows, strict=True)])
        kept = _suppress(boxes, labels, scores, cut, nms_thresh, top_k)
        boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
    return {"boxes": boxes.numpy(), "labels": labels.numpy(), "scores": scores.numpy()}


def _placed(boxes: Tensor, window: np.ndarray) -> Tensor:
    """Corners relative to a window `[n, 4]` → edges in the photo's pixels."""
    corner, far = torch.from_numpy(window.astype(np.float32)).view(2, 2)
    return boxes * (far - corner).repeat(2) + corner.repeat(2)


def _cut(boxes: Tensor, window: np.ndarray, size: np.ndarray) -> Tensor:
    """Which of the boxes relative to a window `[n, 4]` are cut off by an edge of it that is not the photo's `[n]` bool."""
    x1, y1, x2, y2 = window.tolist()
    within = torch.tensor([x1 > 0, y1 > 0, x2 < size[0], y2 < size[1]])
    return (torch.cat([boxes[:, :2] <= EDGE, boxes[:, 2:] >= 1 - EDGE], dim=1) & within).any(dim=1)


def _suppress(boxes: Tensor, labels: Tensor, scores: Tensor, cut: Tensor, nms_thresh: float, top_k: int) -> Tensor:
    """The boxes that remain, at most `top_k`, by falling score `[n]` int64."""
    rank = torch.where(cut, scores * CUT_RANK, scores)
    order = rank.argsort(descending=True, stable=True)
    # As in `ssd.detect`: classes are laid side by side, and what ranks lower than `top_k` that remain needs no look. It also
    # bounds the time, which grows with the number of boxes times the number of those that remain.
    apart = boxes.double() + labels[:, None] * 2.0 * float(boxes.max() if len(boxes) else 0)
    count = 0
    kept = order[:0]
    while len(kept) < top_k and count < len(order):
        count = min(max(4 * count, FIRST * top_k), len(order))
        first = order[:count]
        first = first[~_covered(apart[first], cut[first], nms_thresh)]
        kept = first[nms(apart[first], rank[first].double(), nms_thresh)]
    kept = kept[:top_k]
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _covered(boxes: Tensor, cut: Tensor, thresh: float) -> Tensor:
    """Which of the boxes `[n, 4]`, by falling rank, are cut off and have more than that share of their area in a higher one
    `[n]` bool."""
    covered = torch.zeros(len(boxes), dtype=torch.bool)
    place = torch.arange(len(boxes))
    for rows in cut.nonzero().flatten().split(max(TABLE // max(len(boxes), 1), 1)):
        own = boxes[rows, None]  # [r, 1, 4]
        inside = torch.minimum(own[..., 2:], boxes[:, 2:]) - torch.maximum(own[..., :2], boxes[:, :2])  # [r, n, 2]
        area = (own[..., 2:] - own[..., :2]).prod(dim=2)  # [r, 1]
        covers = inside.clamp_(min=0).prod(dim=2) > thresh * area  # [r, n]
        covered[rows] = (covers & (place < rows[:, None])).any(dim=1)
    return covered
