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
# A doubtful box gives way to one that has more than this share of its score: what the network is sure of is not lost for what
# it merely deems possible.
DOUBT = 0.5
# Share of a doubtful box's own area that lies in one it gives way to. Of what has a few of the network's pixels in the whole
# photo, the box is off by about one: a third of its side.
COVERED = 0.25
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

    Non-maximum suppression by class over all windows, in which two kinds of boxes are doubtful, since another window shows the
    object better: those that are cut off by an edge of a tile within the photo, and those of the whole photo that lie within a
    tile, which shows them larger. A doubtful box ranks lower, and gives way to a higher one of its class that covers a part of
    it, however small a part of the object it is. That one takes over its score, where it is the higher.

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
        own = torch.arange(len(found)).repeat_interleave(torch.tensor([len(entry["scores"]) for entry in found]))
        kept, scores = _suppress(boxes, labels, scores, _doubtful(boxes, own, windows, size), nms_thresh, top_k)
        boxes, labels = boxes[kept], labels[kept]
    return {"boxes": boxes.numpy(), "labels": labels.numpy(), "scores": scores.numpy()}


def _placed(boxes: Tensor, window: np.ndarray) -> Tensor:
    """Corners relative to a window `[n, 4]` → edges in the photo's pixels."""
    corner, far = torch.from_numpy(window.astype(np.float32)).view(2, 2)
    return boxes * (far - corner).repeat(2) + corner.repeat(2)


def _doubtful(boxes: Tensor, own: Tensor, windows: np.ndarray, size: np.ndarray) -> Tensor:
    """Which boxes `[n, 4]`, each found in window number `own` `[n]`, another window shows better `[n]` bool."""
    edges = torch.from_numpy(windows.astype(np.float32))
    side = (edges[:, 2:] - edges[:, :2]).repeat(1, 2)
    inwards = torch.tensor([1.0, 1.0, -1.0, -1.0])
    is_photos = edges == torch.tensor([0.0, 0.0, *size.tolist()])
    limits = torch.where(is_photos, -torch.inf * inwards, edges + EDGE * side * inwards)  # of what a window shows whole
    is_whole = is_photos.all(dim=1)
    doubtful = ~_within(boxes, limits[own])
    of_photo = is_whole[own].nonzero().flatten()
    doubtful[of_photo] = _within(boxes[of_photo, None], limits[~is_whole]).any(dim=1)
    return doubtful


def _within(boxes: Tensor, limits: Tensor) -> Tensor:
    return ((boxes[..., :2] > limits[..., :2]) & (boxes[..., 2:] < limits[..., 2:])).all(dim=-1)


def _suppress(
    boxes: Tensor, labels: Tensor, scores: Tensor, doubtful: Tensor, nms_thresh: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """The boxes that remain, at most `top_k` `[n]` int64, and their scores `[n]`, falling."""
    order = torch.where(doubtful, DOUBT * scores, scores).argsort(descending=True, stable=True)
    # As in `ssd.detect`: classes are laid side by side, and what ranks lower than `top_k` that remain needs no look. It also
    # bounds the time, which grows with the number of boxes times the number of those that remain.
    apart = boxes.double() + labels[:, None] * 2.0 * float(boxes.max() if len(boxes) else 0)
    count = 0
    kept, remaining = order[:0], scores[:0]
    while len(kept) < top_k and count < len(order):
        count = min(max(4 * count, FIRST * top_k), len(order))
        first = order[:count]
        better = _better(apart[first], doubtful[first])
        gone = better >= 0
        raised = scores[first].scatter_reduce(0, better[gone], scores[first][gone], "amax")
        first, raised = first[~gone], raised[~gone]
        place = nms(apart[first], torch.where(doubtful[first], DOUBT * raised, raised).double(), nms_thresh)[:top_k]
        kept, remaining = first[place], raised[place]
    by_score = remaining.argsort(descending=True, stable=True)
    return kept[by_score], remaining[by_score]


def _better(boxes: Tensor, doubtful: Tensor) -> Tensor:
    """What each doubtful one of the boxes `[n, 4]`, by falling rank, gives way to `[n]` int64: of the higher ones that have not
    given way themselves, that which covers most of it; -1 for none."""
    better = torch.full((len(boxes),), -1)
    place = torch.arange(len(boxes))
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for rows in doubtful.nonzero().flatten().split(max(TABLE // max(len(boxes), 1), 1)):
        own = boxes[rows, None]  # [r, 1, 4]
        inside = torch.minimum(own[..., 2:], boxes[:, 2:]) - torch.maximum(own[..., :2], boxes[:, :2])  # [r, n, 2]
        area = (own[..., 2:] - own[..., :2]).prod(dim=2)  # [r, 1]
        share = inside.clamp_(min=0).prod(dim=2).div_(area.clamp(min=1e-9))  # [r, n]
        share.masked_fill_(place >= rows[:, None], 0)
        while True:  # what the first of these rows come to is known at once, and each time that of some more
            most, which = share.masked_fill(gone, 0).max(dim=1)
            gives_way = most > COVERED
            if torch.equal(gives_way, gone[rows]):
                break
            gone[rows] = gives_way
        better[rows] = which.where(gives_way, -1)
    return better
