"""The default boxes (DBoxes) that SSD predicts offsets from.

A `DBoxSpec` holds one `FeatureMap` row for each feature map of the network; everything else that depends on the
DBoxes (boxes a cell, channels of the heads, their total number P) is derived from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class FeatureMap(NamedTuple):
    """One row of DBoxes; all lengths in pixels of the network's input."""

    cells: int  # the map is cells × cells
    step: int  # distance between the centres of two neighbouring cells
    min_size: float  # side of the small square DBox, and geometric mean side of the others
    max_size: float  # the large square DBox has side sqrt(min_size * max_size)
    aspect_ratios: tuple[float, ...]  # each gives two DBoxes: a wide and a tall one

    @property
    def boxes_per_cell(self) -> int:
        return 2 + 2 * len(self.aspect_ratios)


@dataclass(frozen=True)
class DBoxSpec:
    """The DBoxes of a network; `clip` clamps centres and sizes to 0..1, as the ports of SSD do and Caffe does not."""

    maps: tuple[FeatureMap, ...]
    image_size: int = 300
    clip: bool = True

    @property
    def boxes_per_cell(self) -> tuple[int, ...]:
        return tuple(row.boxes_per_cell for row in self.maps)

    @property
    def num_dboxes(self) -> int:
        return sum(row.cells**2 * row.boxes_per_cell for row in self.maps)


# SSD paper, section 3.1, and ssd_pascal.py: smallest scale 0.1 (conv4_3), then 0.2 to 0.9 in even steps.
SSD300_VOC = DBoxSpec(
    maps=(
        FeatureMap(38, 8, 30, 60, (2,)),  # conv4_3
        FeatureMap(19, 16, 60, 111, (2, 3)),  # fc7
        FeatureMap(10, 32, 111, 162, (2, 3)),  # conv6_2
        FeatureMap(5, 64, 162, 213, (2, 3)),  # conv7_2
        FeatureMap(3, 100, 213, 264, (2,)),  # conv8_2
        FeatureMap(1, 300, 264, 315, (2,)),  # conv9_2
    )
)

# ssd_coco.py: smallest scale 0.07 on conv4_3, then 0.15 to 0.9; for data whose objects are small.
SSD300_COCO = DBoxSpec(
    maps=tuple(
        row._replace(min_size=min_size, max_size=max_size)
        for row, min_size, max_size in zip(
            SSD300_VOC.maps, (21, 45, 99, 153, 207, 261), (45, 99, 153, 207, 261, 315), strict=True
        )
    )
)
DBOX_SPECS = {"voc": SSD300_VOC, "coco": SSD300_COCO}


class DBoxSizes(Protocol):
    """Sizes and ratios of one's own, in the rows of SSD300: as many DBoxes in each cell, so that heads keep their shape."""

    @property
    def sizes(self) -> Sequence[float]:
        """Seven, rising: the smallest of each feature map, and the largest of the last; pixels of the network's input."""
        ...

    @property
    def ratios(self) -> Sequence[Sequence[float]]:
        """The aspect ratios of each feature map."""
        ...


def spec_of(dboxes: str | DBoxSizes) -> DBoxSpec:
    """The DBoxes of a name in DBOX_SPECS, or of sizes and ratios."""
    if isinstance(dboxes, str):
        return DBOX_SPECS[dboxes]
    rows = zip(SSD300_VOC.maps, pairwise(dboxes.sizes), dboxes.ratios, strict=True)
    return DBoxSpec(
        tuple(row._replace(min_size=low, max_size=high, aspect_ratios=tuple(ratios)) for row, (low, high), ratios in rows)
    )


def cell_sizes(row: FeatureMap) -> list[tuple[float, float]]:
    """Width and height, in pixels, of the DBoxes in each cell, in the order of the head's channels."""
    large = sqrt(row.min_size * row.max_size)
    sizes = [(row.min_size, row.min_size), (large, large)]
    for ratio in row.aspect_ratios:
        sizes.append((row.min_size * sqrt(ratio), row.min_size / sqrt(ratio)))
        sizes.append((row.min_size / sqrt(ratio), row.min_size * sqrt(ratio)))
    return sizes


def make_dbox_list(spec: DBoxSpec = SSD300_VOC) -> Tensor:
    """All DBoxes of a network (SSD paper, section 2.2).

    Returns:
        Float32 `[P, 4]`, centres (cx, cy, w, h) relative to the image: P = 8732 for `SSD300_VOC`. They run over feature
        maps, then rows, then columns, then the DBoxes of a cell: the order in which the network predicts.
    """
    maps = []
    for row in spec.maps:
        centers = (torch.arange(row.cells, dtype=torch.float64) + 0.5) * row.step
        cells = torch.cartesian_prod(centers, centers).flip(1)  # (cx, cy), row by row
        sizes = torch.tensor(cell_sizes(row), dtype=torch.float64)
        pairs = cells[:, None].expand(-1, len(sizes), 2), sizes.expand(len(cells), -1, 2)
        maps.append(torch.cat(pairs, dim=2).flatten(0, 1))  # [cells² · DBoxes a cell, 4]
    dbox_list = torch.cat(maps) / spec.image_size
    return (dbox_list.clamp(0, 1) if spec.clip else dbox_list).float()
