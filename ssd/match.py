"""Matching: which DBox is matched to which object (SSD paper, section 2.2, "Matching strategy").

First every object takes a DBox of its own, in falling overlap; then every other DBox whose best overlap reaches the
threshold takes its best object.

Many overlaps are equal: those of an object inside several DBoxes of one area, or of a DBox inside several objects. Rounding
must not decide between them, or it would be another DBox on every device. So overlaps are worked out in float64 and compared
in steps of 2^-16; of equal ones the pair with the nearer centres comes first, in steps of 2^-20 of the squared distance, then
the lower DBox, then the lower object.

The work is done for a whole batch at once on a table of (objects × DBoxes), some rows at a time, on a GPU without a question
that the host would have to wait for, unless a photo has more than 32 objects.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssd.batch import Targets, pad_targets
from ssd.boxes import MIN_SIZE, VARIANCES, iou, is_apple, to_centers, to_corners

# A pair of object and DBox as one int64 that sorts as the rules say: overlap, nearness, and what decides between equals.
OVERLAP_STEPS = 2**16  # up to an overlap of 1
DISTANCE_STEPS = 2**20  # up to a squared distance of 1, as that from corner to corner is 2
INDEX_BITS, NEARNESS_BITS = 20, 22
INDEX = 2**INDEX_BITS - 1

# Rounds of bidding on a GPU before the host asks whether all are settled, for which it has to wait. Photos of up to 32 objects
# need no more rounds than that; where one has more, a wait costs less than hundreds of rounds in which nobody bids.
ROUNDS_UNASKED = 32

# Objects whose rows of the table are worked out at once: those whose float64 stays in a CPU's cache, which takes a third of the
# time with thousands of objects, and those that take some hundred MB on a GPU, where an ordinary batch is one part.
ROWS_ON_A_CPU, ROWS_ON_A_GPU = 16, 1024


class Matched(NamedTuple):
    """What each DBox is to predict."""

    loc: Tensor  # [B, P, 4] float32 offsets; of no meaning at background, but finite
    conf: Tensor  # [B, P] int64: 0 = background, otherwise label + 1


def match(
    boxes: Tensor,
    labels: Tensor,
    dbox_list: Tensor,
    jaccard_thresh: float = 0.5,
    variances: tuple[float, float] = VARIANCES,
) -> tuple[Tensor, Tensor]:
    """Matches the objects of one image.

    Args:
        boxes: corners `[G, 4]`, relative to the image; G may be 0.
        labels: `[G]`, counted from 0 over the class names.
        dbox_list: centres `[P, 4]`.
        jaccard_thresh: least overlap at which a DBox that no object owns becomes positive.
        variances: as in `ssd.boxes.encode`.

    Returns:
        loc_t `[P, 4]` offsets (0 at background) and conf_t `[P]` (0 = background, otherwise label + 1).
    """
    targets = pad_targets([torch.cat([boxes.reshape(-1, 4), labels.reshape(-1, 1).to(boxes)], dim=1)])
    matched = match_batch(targets, dbox_list, jaccard_thresh, variances)
    return matched.loc[0].masked_fill(matched.conf[0, :, None] == 0, 0), matched.conf[0]


@torch.no_grad()
def match_batch(
    targets: Targets,
    dbox_list: Tensor,
    jaccard_thresh: float = 0.5,
    variances: tuple[float, float] = VARIANCES,
) -> Matched:
    """Matches the objects of B images; arguments as in `match`."""
    if is_apple(targets.labels.device):  # it has no float64
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
    """`encode` of each DBox's object: corners `[N, 4]`, rows `[B, P]` → offsets `[B, P, 4]`.

    Logarithms are taken of the N objects and the P DBoxes, so that only a difference is left for the B × P pairs.
    """

    def with_logarithms(centers: Tensor) -> Tensor:
        return torch.cat([centers[:, :2], centers[:, 2:].clamp(min=MIN_SIZE).log()], dim=1)

    scale = torch.cat([dbox_list[:, 2:] * variances[0], torch.full_like(dbox_list[:, 2:], variances[1])], dim=1).reciprocal()
    pairs = with_logarithms(to_centers(boxes)).index_select(0, best.flatten()).view(*best.shape, 4)
    return pairs.sub_(with_logarithms(dbox_list)).mul_(scale)


def _candidates(
    boxes: Tensor, dbox_list: Tensor, image: Tensor, num_images: int, num_slots: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What comes first for each DBox, and for each object.

    Args:
        boxes: corners `[N, 4]`, float64.
        dbox_list: centres `[P, 4]`, float64.
        image: `[N]`, the image of each object.
        num_images: B.
        num_slots: G, the most objects of an image.

    Returns:
        For each DBox of each image the row of its object `[B, P]` (any in an image without objects) and their overlap `[B, P]`
        in steps (0 there); for each object the keys of its best G DBoxes `[N, K]`, falling, with P - 1 - DBox in the index.
    """
    num_objects, num_dboxes = len(boxes), len(dbox_list)
    corners = to_corners(dbox_list)
    # The lower object has the larger key, and so has the lower DBox.
    falling = torch.arange(num_objects - 1, -1, -1, device=boxes.device)[:, None]
    falling_dbox = torch.arange(num_dboxes - 1, -1, -1, device=boxes.device)
    best = image.new_zeros(num_images, num_dboxes)
    candidates = image.new_empty(num_objects, min(num_slots, num_dboxes))
    rows = ROWS_ON_A_CPU if boxes.device.type == "cpu" else ROWS_ON_A_GPU
    for part in (slice(begin, begin + rows) for begin in range(0, num_objects, rows)):
        key = _keys(boxes[part], dbox_list, corners)
        best.scatter_reduce_(0, image[part, None].expand_as(key), key + falling[part], "amax")
        # An object can lose at most G - 1 DBoxes to the others of its image, so its best G are enough for an exact answer.
        candidates[part] = key.add_(falling_dbox).topk(candidates.shape[1], dim=1).values
    return num_objects - 1 - (best & INDEX), best >> INDEX_BITS + NEARNESS_BITS, candidates


def _keys(boxes: Tensor, dbox_list: Tensor, corners: Tensor) -> Tensor:
    """Pairs as int64 of the order in which they are taken, with the lowest `INDEX_BITS` free: corners `[n, 4]`, centres
    `[P, 4]` and their corners, all float64 → `[n, P]`.
    """
    dbox_x, dbox_y = dbox_list[:, :2].clamp(0, 1).T.contiguous()
    overlap = iou(boxes, corners).mul_(OVERLAP_STEPS).round_()
    x, y = to_centers(boxes)[:, :2].clamp(0, 1).T[..., None]  # [n, 1] each
    distance = (x - dbox_x).square_().add_((y - dbox_y).square_()).mul_(DISTANCE_STEPS).round_()  # squared
    # Whole numbers below 2^40 and their multiples, which float64 holds exactly.
    return overlap.mul_(2**NEARNESS_BITS).add_(2**NEARNESS_BITS - 1).sub_(distance).mul_(2**INDEX_BITS).long()


def _own_dboxes(candidates: Tensor, image: Tensor, num_images: int, num_dboxes: int) -> Tensor:
    """The DBox that each object takes for itself: greedy bipartite matching in falling order, for all images at once.

    Every object bids its key for a DBox, and a DBox goes to the highest bid so far (deferred acceptance, Gale and
    Shapley 1962). Since both sides rank a pair by the same key, what is left in the end is what taking the largest pair
    of the whole table again and again would leave. The pair that this would take as the t-th is settled in round t at the
    latest, so G rounds are enough; most objects want different DBoxes, and then a few are.

    Args:
        candidates: keys of the best DBoxes of each object `[N, K]`, as of `_candidates`.
        image: `[N]`, the image of each object.
        num_images: B.
        num_dboxes: P.

    Returns:
        `[N]` indices of DBoxes, no two alike within an image (if it has at least as many DBoxes as objects).
    """
    num_objects, num_candidates = candidates.shape
    dbox = num_dboxes - 1 - (candidates & INDEX)
    position = image[:, None] * num_dboxes + dbox
    order = torch.arange(num_objects - 1, -1, -1, device=image.device)[:, None]  # of equal bids the lower object's is higher
    bids = (candidates & ~INDEX) + order
    held = image.new_full((num_images * num_dboxes,), -1)  # the highest bid for each DBox
    place = image.new_zeros(num_objects, 1)
    rounds_unasked = 1 if image.device.type == "cpu" else ROUNDS_UNASKED
    for number in range(1, num_candidates + 1):
        place = (held[position] <= bids).int().argmax(dim=1, keepdim=True)  # the best DBox that no higher bid holds
        wanted, bid = position.gather(1, place).squeeze(1), bids.gather(1, place).squeeze(1)
        held.scatter_reduce_(0, wanted, bid, "amax")
        if number % rounds_unasked or number == num_candidates or torch.compiler.is_compiling():
            continue
        if torch.equal(held[wanted], bid):  # every object holds the DBox that it wants
            break
    return dbox.gather(1, place).squeeze(1)
