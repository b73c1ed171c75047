"""The default boxes (DBoxes) from which SSD predicts offsets.

A `DBoxSpec` has one `DBoxRow` for each feature map. Boxes per cell, head channels and the total number P follow from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ssd.architecture import SSD300_VGG16, Architecture


class DBoxRow(NamedTuple):
    """The DBoxes of one feature map; all lengths in pixels of the network input."""

    cells: int  # the map has cells × cells cells
    step: float  # distance between the centres of neighbouring cells
    min_size: float  # side of the small square DBox, and geometric mean side of the others
    max_size: float  # the large square DBox has side sqrt(min_size * max_size)
    aspect_ratios: tuple[float, ...]  # each adds a wide and a tall DBox

    @property
    def boxes_per_cell(self) -> int:
        return 2 + 2 * len(self.aspect_ratios)


@dataclass(frozen=True)
class DBoxSpec:
    """The DBoxes of a network. `clip` clamps centres and sizes to 0..1, as ports of SSD do and Caffe does not."""

    maps: tuple[DBoxRow, ...]
    input_size: int = SSD300_VGG16.input_size
    clip: bool = True

    @property
    def boxes_per_cell(self) -> tuple[int, ...]:
        return tuple(row.boxes_per_cell for row in self.maps)

    @property
    def num_dboxes(self) -> int:
        return sum(row.cells**2 * row.boxes_per_cell for row in self.maps)


class DBoxSizes(Protocol):
    """Custom sizes and aspect ratios for the feature maps of a network. Their counts are fixed."""

    @property
    def sizes(self) -> Sequence[float]:
        """The smallest size of each feature map and the largest of the last, rising; pixels of the network input."""
        ...

    @property
    def ratios(self) -> Sequence[Sequence[float]]:
        """The aspect ratios of each feature map."""
        ...


def spec_of(dboxes: str | DBoxSizes, architecture: Architecture = SSD300_VGG16) -> DBoxSpec:
    """Return a network's DBoxes for a name in its `dbox_sizes`, or for custom sizes and ratios."""
    if isinstance(dboxes, str):
        sizes, ratios = architecture.dbox_sizes[dboxes], [row.aspect_ratios for row in architecture.maps]
    else:
        sizes, ratios = dboxes.sizes, dboxes.ratios
    maps = tuple(
        DBoxRow(architecture.cells(row), row.step, low, high, tuple(own))
        for row, (low, high), own in zip(architecture.maps, pairwise(sizes), ratios, strict=True)
    )
    return DBoxSpec(maps, architecture.input_size)


def named_specs(architecture: Architecture = SSD300_VGG16) -> dict[str, DBoxSpec]:
    """Return a network's DBoxes by their names in `model.dboxes`."""
    return {name: spec_of(name, architecture) for name in architecture.dbox_sizes}


SSD300_VOC = spec_of("voc")
SSD300_COCO = spec_of("coco")


def cell_sizes(row: DBoxRow) -> list[tuple[float, float]]:
    """Return width and height, in pixels, of the DBoxes in each cell, in the order of the head channels."""
    large = sqrt(row.min_size * row.max_size)
    sizes = [(row.min_size, row.min_size), (large, large)]
    for ratio in row.aspect_ratios:
        sizes.append((row.min_size * sqrt(ratio), row.min_size / sqrt(ratio)))
        sizes.append((row.min_size / sqrt(ratio), row.min_size * sqrt(ratio)))
    return sizes


def make_dbox_list(spec: DBoxSpec = SSD300_VOC) -> Tensor:
    """Return all DBoxes of a network (SSD paper, section 2.2).

    Returns:
        Float32 `[P, 4]`, centres (cx, cy, w, h) relative to the image; P = 8732 for `SSD300_VOC`. The order is that of the
        predictions: by feature map, then row, then column, then DBox of the cell.
    """
    maps: list[Tensor] = []
    for row in spec.maps:
        centers = (torch.arange(row.cells, dtype=torch.float64) + 0.5) * row.step
        cells = torch.cartesian_prod(centers, centers).flip(1)  # (cx, cy), row by row
        sizes = torch.tensor(cell_sizes(row), dtype=torch.float64)
        pairs = cells[:, None].expand(-1, len(sizes), 2), sizes.expand(len(cells), -1, 2)
        maps.append(torch.cat(pairs, dim=2).flatten(0, 1))  # [cells² · boxes per cell, 4]
    dbox_list = torch.cat(maps) / spec.input_size
    return (dbox_list.clamp(0, 1) if spec.clip else dbox_list).float()
