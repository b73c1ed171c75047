"""Matching: which DBox is matched to which object (SSD paper, section 2.2, "Matching strategy").

First every object takes one DBox for itself, in order of decreasing overlap. Then every other DBox whose best overlap reaches
the threshold takes its best object.

Many overlaps are equal: those of an object inside several DBoxes of one area, or of a DBox inside several objects. If rounding
decided between them, each device would choose another DBox. So overlaps are computed in float64 and compared in steps of 2^-16.
Among equal overlaps, the pair with the nearer centres comes first (squared distance in steps of 2^-20), then the lower DBox,
then the lower object.

A whole batch is matched at once on a table of objects × DBoxes, some rows at a time. On a GPU the host does not wait, unless a
photo has more than 32 objects.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssd.batch import Targets, pad_targets
from ssd.boxes import MIN_SIZE, NO_FLOAT64, VARIANCES, iou, to_centers, to_corners

# The key of an object-DBox pair, one int64 that sorts by the rules: overlap, nearness, index.
OVERLAP_STEPS = 2**16  # up to an overlap of 1
DISTANCE_STEPS = 2**20  # up to a squared distance of 1, as that from corner to corner is 2
INDEX_BITS, NEARNESS_BITS = 20, 22
INDEX = 2**INDEX_BITS - 1

# Rounds of bidding on a GPU between checks whether all objects are settled; the host waits for a check. Photos of up to 32
# objects need no check. With more objects, waiting costs less than hundreds of idle rounds.
ROUNDS_UNASKED = 32

# Rows of the table computed at once. On a CPU their float64 values fit into the cache, which with thousands of objects takes a
# third of the time. On a GPU they take some hundred MB, and an ordinary batch is one part.
ROWS_ON_A_CPU, ROWS_ON_A_GPU = 16, 1024


class Matched(NamedTuple):
    """The target of each DBox."""

    loc: Tensor  # [B, P, 4] float32 offsets; at background meaningless, but finite
    conf: Tensor  # [B, P] int64: 0 = background, otherwise label + 1


def match(
    boxes: Tensor, labels: Tensor, dbox_list: Tensor, jaccard_thresh: float = 0.5, variances: tuple[float, float] = VARIANCES
) -> tuple[Tensor, Tensor]:
    """Match the objects of one image to DBoxes.

    Args:
        boxes: corners `[G, 4]`, relative to the image; G may be 0.
        labels: `[G]`, counted from 0 over the class names.
        dbox_list: centres `[P, 4]`.
        jaccard_thresh: minimum overlap at which a DBox that no object has claimed becomes positive.
        variances: as in `ssd.boxes.encode`.

    Returns:
        loc_t `[P, 4]` offsets (0 at background) and conf_t `[P]` (0 = background, otherwise label + 1).
    """
    targets = pad_targets([torch.cat([boxes.reshape(-1, 4), labels.reshape(-1, 1).to(boxes)], dim=1)])
    matched = match_batch(targets, dbox_list, jaccard_thresh, variances)
    return matched.loc[0].masked_fill(matched.conf[0, :, None] == 0, 0), matched.conf[0]


@torch.no_grad()
def match_batch(
    targets: Targets, dbox_list: Tensor, jaccard_thresh: float = 0.5, variances: tuple[float, float] = VARIANCES
) -> Matched:
    """Match the objects of B images to DBoxes; arguments as in `match`."""
    if targets.labels.device.type in NO_FLOAT64:
        matched = match_batch(targets.to(torch.device("cpu")), dbox_list.cpu(), jaccard_thresh, variances)
        return Matched(*(each.to(dbox_list.device) for each in matched))
    num_images, num_slots = targets.labels.shape
    num_dboxes, num_objects = len(dbox_list), len(targets.objects)
    dbox_list = dbox_list.float()
    if not num_objects:
        loc = dbox_list.new_zeros(num_images, num_dboxes, 4)
        return Matched(loc, targets.objects.new_zeros(num_images, num_dboxes))
    boxes = targets.boxes.flatten(0, 1).index_select(0, targets.objects).float()  # [N, 4]
    labels = targets.labels.flatten().index_select(0, targets.objects)  # [N]
    image = targets.objects // num_slots  # [N]
    best, overlap, candidates = _candidates(boxes.double(), dbox_list.double(), image, num_images, num_slots)
    own = _own_dboxes(candidates, image, num_images, num_dboxes)  # [N]
    positive = overlap >= max(round(jaccard_thresh * OVERLAP_STEPS), 1)  # [B, P]
    position = image * num_dboxes + own
    best.view(-1).index_copy_(0, position, torch.arange(num_objects, device=best.device))
    positive.view(-1).index_fill_(0, position, True)
    conf = (labels + 1).index_select(0, best.flatten()).view_as(best) * positive
    return Matched(_offsets(boxes, best, dbox_list, variances), conf)


def _offsets(boxes: Tensor, best: Tensor, dbox_list: Tensor, variances: tuple[float, float]) -> Tensor:
    """Return the offsets `[B, P, 4]` from each DBox to its object, for corners `[N, 4]` and object indices `[B, P]`.

    This is `encode` with the logarithms of N objects and P DBoxes computed first, and only differences for the B × P pairs.
    """

    def with_logarithms(centers: Tensor) -> Tensor:
        return torch.cat([centers[:, :2], centers[:, 2:].clamp(min=MIN_SIZE).log()], dim=1)

    scale = torch.cat([dbox_list[:, 2:] * variances[0], torch.full_like(dbox_list[:, 2:], variances[1])], dim=1).reciprocal()
    pairs = with_logarithms(to_centers(boxes)).index_select(0, best.flatten()).view(*best.shape, 4)
    return pairs.sub_(with_logarithms(dbox_list)).mul_(scale)


def _candidates(
    boxes: Tensor, dbox_list: Tensor, image: Tensor, num_images: int, num_slots: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the objects for each DBox, and the DBoxes for each object.

    Args:
        boxes: corners `[N, 4]`, float64.
        dbox_list: centres `[P, 4]`, float64.
        image: `[N]`, image index of each object.
        num_images: B.
        num_slots: G, the maximum number of objects per image.

    Returns:
        For each DBox of each image, its best object `[B, P]` (arbitrary in an image without objects) and their overlap `[B, P]`
        in steps (0 there). For each object, the keys of its best G DBoxes `[N, K]`, falling, with P - 1 - DBox as index.
    """
    num_objects, num_dboxes = len(boxes), len(dbox_list)
    corners = to_corners(dbox_list)
    # Lower objects and lower DBoxes get larger keys.
    falling = torch.arange(num_objects - 1, -1, -1, device=boxes.device)[:, None]
    falling_dbox = torch.arange(num_dboxes - 1, -1, -1, device=boxes.device)
    best = image.new_zeros(num_images, num_dboxes)
    candidates = image.new_empty(num_objects, min(num_slots, num_dboxes))
    rows = ROWS_ON_A_CPU if boxes.device.type == "cpu" else ROWS_ON_A_GPU
    for part in (slice(begin, begin + rows) for begin in range(0, num_objects, rows)):
        key = _keys(boxes[part], dbox_list, corners)
        best.scatter_reduce_(0, image[part, None].expand_as(key), key + falling[part], "amax")
        # An object loses at most G - 1 DBoxes to the others of its image, so its best G are enough for an exact result.
        candidates[part] = key.add_(falling_dbox).topk(candidates.shape[1], dim=1).values
    return num_objects - 1 - (best & INDEX), best >> INDEX_BITS + NEARNESS_BITS, candidates


def _keys(boxes: Tensor, dbox_list: Tensor, corners: Tensor) -> Tensor:
    """Return the keys `[n, P]` of all pairs, int64 with the lowest `INDEX_BITS` zero.

    The arguments are object corners `[n, 4]`, DBox centres `[P, 4]` and DBox corners `[P, 4]`, all float64.
    """
    dbox_x, dbox_y = dbox_list[:, :2].clamp(0, 1).T.contiguous()
    overlap = iou(boxes, corners).mul_(OVERLAP_STEPS).round_()
    x, y = to_centers(boxes)[:, :2].clamp(0, 1).T[..., None]  # [n, 1] each
    distance = (x - dbox_x).square_().add_((y - dbox_y).square_()).mul_(DISTANCE_STEPS).round_()  # squared
    # Integers below 2^40 and multiples of them, which are exact in float64.
    return overlap.mul_(2**NEARNESS_BITS).add_(2**NEARNESS_BITS - 1).sub_(distance).mul_(2**INDEX_BITS).long()


def _own_dboxes(candidates: Tensor, image: Tensor, num_images: int, num_dboxes: int) -> Tensor:
    """Return the DBox that each object takes for itself: greedy bipartite matching in falling order, for all images at once.

    Every object bids its key for a DBox, and a DBox goes to the highest bid so far (deferred acceptance, Gale and Shapley
    1962). Both sides rank a pair by the same key, so the result equals that of repeatedly taking the largest pair of the whole
    table. The t-th pair of that sequence is settled in round t at the latest, so G rounds are enough. Usually objects prefer
    different DBoxes, and a few rounds suffice.

    Args:
        candidates: keys of the best DBoxes of each object `[N, K]`, from `_candidates`.
        image: `[N]`, image index of each object.
        num_images: B.
        num_dboxes: P.

    Returns:
        `[N]` DBox indices, distinct within an image (if it has at least as many DBoxes as objects).
    """
    num_objects, num_candidates = candidates.shape
    dbox = num_dboxes - 1 - (candidates & INDEX)
    position = image[:, None] * num_dboxes + dbox
    order = torch.arange(num_objects - 1, -1, -1, device=image.device)[:, None]  # breaks ties: lower objects bid more
    bids = (candidates & ~INDEX) + order
    held = image.new_full((num_images * num_dboxes,), -1)  # the highest bid for each DBox
    place = image.new_zeros(num_objects, 1)
    rounds_unasked = 1 if image.device.type == "cpu" else ROUNDS_UNASKED
    for number in range(1, num_candidates + 1):
        place = (held[position] <= bids).int().argmax(dim=1, keepdim=True)  # best DBox without a higher bid
        wanted, bid = position.gather(1, place).squeeze(1), bids.gather(1, place).squeeze(1)
        held.scatter_reduce_(0, wanted, bid, "amax")
        if number % rounds_unasked or number == num_candidates or torch.compiler.is_compiling():
            continue
        if torch.equal(held[wanted], bid):  # every object holds its DBox
            break
    return dbox.gather(1, place).squeeze(1)
