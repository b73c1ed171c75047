"""Statistics of photos: objects per class, their sizes, and how well the default boxes cover them."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from data.dataset.annotations import Annotations
from data.dataset.class_names import similar_classes
from data.dataset.crops import LabelledCrops
from ssd.boxes import iou, to_corners

SIDE_BINS = (0, 8, 16, 32, 64, 128)  # where bins of an object's side begin, in pixels of the network's input
CHUNK = 1024  # objects compared with the DBoxes at a time


def side_bins(input_size: int) -> tuple[int, ...]:
    """Return the edges of the bins for an input of so many pixels a side; the last bin includes them."""
    return (*SIDE_BINS, input_size + 1)


def best_overlaps(photos: Annotations | LabelledCrops, dbox_list: torch.Tensor) -> np.ndarray:
    """Return the largest overlap of each object with any DBox `[N]`."""
    corners = to_corners(dbox_list)
    chunks = torch.from_numpy(all_boxes(photos)).split(CHUNK)
    return np.concatenate([np.zeros(0, np.float32), *(iou(chunk, corners).amax(dim=1).numpy() for chunk in chunks)])


def all_boxes(photos: Annotations | LabelledCrops) -> np.ndarray:
    """Return all objects `[N, 4]` as corners relative to their photo or crop."""
    sizes = np.repeat(photos.sizes, np.diff(photos.starts), axis=0)
    return (photos.boxes / np.tile(sizes, 2)).astype(np.float32)


def print_part(part: str, photos: Annotations, overlaps: np.ndarray, thresh: float, dboxes: str, input_size: int) -> None:
    """Print the statistics of one part of the data."""
    counts = np.diff(photos.starts)
    print(
        f"\ndata.{part}: {len(photos)} photos, {len(photos.labels)} objects; {int((counts == 0).sum())} photos without objects"
    )
    if not len(photos.labels):
        return
    for warning in similar_classes(dict(zip(photos.classes, np.bincount(photos.labels).tolist(), strict=False))):
        print(f"warning: {warning}")
    widths, heights = photos.sizes.T
    print(f"photos: {widths.min()} to {widths.max()} pixels wide, {heights.min()} to {heights.max()} high; "
          f"objects per photo: {counts.mean():.1f} on average, {counts.max()} at most")  # fmt: skip
    width = max(len("class"), *map(len, photos.classes))
    print(f"  {'class':{width}}  objects  difficult  photos")
    owners = np.repeat(np.arange(len(photos)), counts)
    for label, name in enumerate(photos.classes):
        of_class = photos.labels == label
        difficult = int(photos.difficult[of_class].sum())
        print(f"  {name:{width}}  {int(of_class.sum()):7d}  {difficult:9d}  {len(np.unique(owners[of_class])):6d}")
    print_sizes(photos, overlaps, thresh, dboxes, input_size)


def print_sizes(photos: Annotations | LabelledCrops, overlaps: np.ndarray, thresh: float, dboxes: str, input_size: int) -> None:
    """Print how large objects are in the network's input, and how many the DBoxes cover."""
    boxes = all_boxes(photos) * input_size
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    print(f"  side in the {input_size} pixel input  objects  covered (best overlap with a DBox of {dboxes} >= {thresh:g})")
    for low, high in pairwise(side_bins(input_size)):
        inside = (sides >= low) & (sides < high)
        if inside.any():
            label = f"{low} to {min(high, input_size)}"
            print(f"  {label:>27}  {int(inside.sum()):7d}  {(overlaps[inside] >= thresh).mean():7.1%}")
    print(f"  {'all':>27}  {len(sides):7d}  {(overlaps >= thresh).mean():7.1%}")


def print_change(
    classes: Sequence[str],
    crops: LabelledCrops,
    before: np.ndarray,
    after: np.ndarray,
    thresh: float,
    input_size: int,
) -> None:
    """Print how many objects of each class and size two sets of DBoxes cover.

    `before` and `after` `[N]` are each object's largest overlap with the current and the fitted DBoxes. An object is covered
    from an overlap of `thresh`.
    """
    boxes = all_boxes(crops) * input_size
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    by_class = {name: crops.labels == label for label, name in enumerate(classes)}
    bins = pairwise(side_bins(input_size))
    by_size = {f"{low} to {min(high, input_size)}": (sides >= low) & (sides < high) for low, high in bins}
    width = max(len("mean over classes"), *map(len, classes))
    shares = []
    for title, groups in (("class", by_class), (f"side, of {input_size}", by_size)):
        print(f"  {title:{width}}  objects  covered now  fitted")
        for name, rows in groups.items():
            if rows.any():
                share = [(overlaps[rows] >= thresh).mean() for overlaps in (before, after)]
                shares += [share] if groups is by_class else []
                print(f"  {name:{width}}  {int(rows.sum()):7d}  {share[0]:11.1%}  {share[1]:6.1%}")
    now, fitted = np.mean(shares, axis=0)
    print(f"  {'mean over classes':{width}}  {len(sides):7d}  {now:11.1%}  {fitted:6.1%}")
