"""Merging of the detections in a photo and its tiles, for evaluation and prediction alike."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from ssd.batch import Crops
from ssd.inference.predict import Detections

# Share of a tile's side, 3 of the network's pixels: the tile's edge cuts off a box that comes this close to it.
EDGE = 0.01
# A doubtful box is ranked by this share of its score, so that it does not displace a certain one.
DOUBT = 0.5
# A doubtful box gives way to a box that covers this share of its area. For objects that are a few network pixels wide in the
# whole photo, the box is off by about one pixel: a third of its side.
COVERED = 0.25
FIRST = 5  # times `top_k` boxes are examined first; if too few remain, four times as many, and so on
PAIRS = 2**20  # overlaps computed at once


class Merger:
    """Merges detections photo by photo, as soon as all crops of a photo have arrived.

    Args:
        crops: of all photos.
        sizes: `[n, 2]` width and height of every photo, pixels.
        nms_thresh: as in `merge`.
        top_k: as in `merge`.
    """

    def __init__(self, crops: Crops, sizes: np.ndarray, nms_thresh: float, top_k: int) -> None:
        self.crops = crops
        self.sizes = sizes
        self.nms_thresh = nms_thresh
        self.top_k = top_k
        self.counts = np.bincount(crops.photos, minlength=len(sizes))  # [n] crops of each photo
        self.waiting: defaultdict[int, dict[int, dict[str, Tensor]]] = defaultdict(dict)
        self.merged: dict[int, Detections] = {}  # by photo

    def add(self, index: int, detections: dict[str, Tensor]) -> None:
        """Add the detections in crop number `index`, as `merge` takes them."""
        photo = int(self.crops.photos[index])
        self.waiting[photo][index] = detections
        if len(self.waiting[photo]) == self.counts[photo]:
            every = self.waiting.pop(photo)
            edges = self.crops.edges[list(every)]
            self.merged[photo] = merge(list(every.values()), edges, self.sizes[photo], self.nms_thresh, self.top_k)


def merge(found: Sequence[dict[str, Tensor]], crops: np.ndarray, size: np.ndarray, nms_thresh: float, top_k: int) -> Detections:
    """Merge the detections in all crops of one photo.

    Non-maximum suppression by class runs over all crops together. Two kinds of boxes are doubtful, since another crop shows the
    object better: boxes cut off by a tile's edge within the photo, and boxes of the whole photo that lie within a tile, which
    shows them larger. A doubtful box ranks lower. It gives way to a higher box of its class that covers part of it, even if
    that box shows only a small part of the object, and passes on its score if that is higher.

    Args:
        found: detections in each crop as `ssd.detect.detect` returns them: boxes relative to the crop.
        crops: `[m, 4]` edges (x1, y1, x2, y2) in the photo's pixels, counted from 0. A single crop needs no merging.
        size: `[2]` width and height of the photo, pixels.
        nms_thresh: of two boxes of a class with a larger overlap, the lower-scoring one is dropped.
        top_k: maximum number of detections in the photo.
    """
    boxes = torch.cat([_to_photo(entry["boxes"].cpu(), crop) for entry, crop in zip(found, crops, strict=True)])
    labels, scores = (torch.cat([entry[name] for entry in found]).cpu() for name in ("labels", "scores"))
    if len(found) > 1:
        crop = torch.arange(len(found)).repeat_interleave(torch.tensor([len(entry["scores"]) for entry in found]))
        kept, scores = _suppress(boxes, labels, scores, _doubtful(boxes, crop, crops, size), nms_thresh, top_k)
        boxes, labels = boxes[kept], labels[kept]
    return Detections(boxes.numpy(), labels.numpy(), scores.numpy())


def _to_photo(boxes: Tensor, crop: np.ndarray) -> Tensor:
    """Convert corners relative to a crop `[n, 4]` to edges in the photo's pixels."""
    corner, far = torch.from_numpy(crop.astype(np.float32)).view(2, 2)
    return boxes * (far - corner).repeat(2) + corner.repeat(2)


def _doubtful(boxes: Tensor, crop: Tensor, crops: np.ndarray, size: np.ndarray) -> Tensor:
    """Return which boxes `[n, 4]`, each found in crop number `crop` `[n]`, another crop shows better `[n]` bool."""
    edges = torch.from_numpy(crops.astype(np.float32))
    side = (edges[:, 2:] - edges[:, :2]).repeat(1, 2)
    inwards = torch.tensor([1.0, 1.0, -1.0, -1.0])
    at_photo_edge = edges == torch.tensor([0.0, 0.0, *size.tolist()])
    limits = torch.where(at_photo_edge, -torch.inf * inwards, edges + EDGE * side * inwards)  # boxes within are complete
    is_whole = at_photo_edge.all(dim=1)
    doubtful = ~_within(boxes, limits[crop])
    of_photo = is_whole[crop].nonzero().flatten()
    doubtful[of_photo] = _within(boxes[of_photo, None], limits[~is_whole]).any(dim=1)
    return doubtful


def _within(boxes: Tensor, limits: Tensor) -> Tensor:
    return ((boxes[..., :2] > limits[..., :2]) & (boxes[..., 2:] < limits[..., 2:])).all(dim=-1)


def _suppress(
    boxes: Tensor, labels: Tensor, scores: Tensor, doubtful: Tensor, nms_thresh: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Return the boxes to keep, at most `top_k` `[n]` int64, and their scores `[n]`, falling."""
    order = torch.where(doubtful, DOUBT * scores, scores).argsort(descending=True, stable=True)
    # As in `ssd.detect`: classes are shifted apart, and once `top_k` boxes remain, lower ones are skipped. That also bounds the
    # time, which grows with the number of boxes times the number of remaining ones.
    apart = boxes.double() + labels[:, None] * 2.0 * float(boxes.max() if len(boxes) else 0)
    count = 0
    kept, kept_scores = order[:0], scores[:0]
    while len(kept) < top_k and count < len(order):
        count = min(max(4 * count, FIRST * top_k), len(order))
        first = order[:count]
        better = _better(apart[first], doubtful[first])
        gone = better >= 0
        raised = scores[first].scatter_reduce(0, better[gone], scores[first][gone], "amax")
        first, raised = first[~gone], raised[~gone]
        place = nms(apart[first], torch.where(doubtful[first], DOUBT * raised, raised).double(), nms_thresh)[:top_k]
        kept, kept_scores = first[place], raised[place]
    by_score = kept_scores.argsort(descending=True, stable=True)
    return kept[by_score], kept_scores[by_score]


def _better(boxes: Tensor, doubtful: Tensor) -> Tensor:
    """Return, for each of the boxes `[n, 4]`, by falling rank, the box that a doubtful one gives way to `[n]` int64: of the
    higher boxes that have not given way themselves, the one that covers most of it; -1 for none."""
    better = torch.full((len(boxes),), -1)
    place = torch.arange(len(boxes))
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for rows in doubtful.nonzero().flatten().split(max(PAIRS // max(len(boxes), 1), 1)):
        doubted = boxes[rows, None]  # [r, 1, 4]
        inside = torch.minimum(doubted[..., 2:], boxes[:, 2:]) - torch.maximum(doubted[..., :2], boxes[:, :2])  # [r, n, 2]
        area = (doubted[..., 2:] - doubted[..., :2]).prod(dim=2)  # [r, 1]
        share = inside.clamp_(min=0).prod(dim=2).div_(area.clamp(min=1e-9))  # [r, n]
        share.masked_fill_(place >= rows[:, None], 0)
        while True:  # each pass settles at least one more row, from the top
            most, which = share.masked_fill(gone, 0).max(dim=1)
            gives_way = most > COVERED
            if torch.equal(gives_way, gone[rows]):
                break
            gone[rows] = gives_way
        better[rows] = which.where(gives_way, -1)
    return better
