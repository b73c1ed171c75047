"""Batches: NamedTuples of tensors that travel from loader to network and loss. The loader can pin and move them.

Each image of a batch shows a crop of a photo: the whole photo or a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PADDING = -1  # the label of a row of `Targets` that is no object


class Targets(NamedTuple):
    """The objects of B images, padded to G per image; G is 0 if no image has objects.

    `objects` holds the positions of real objects, computed on the host. Finding them by a mask would make the host wait for
    the device.
    """

    boxes: Tensor  # [B, G, 4] float32 corners (x1, y1, x2, y2), relative to the image; 0 where padded
    labels: Tensor  # [B, G] int64, counted from 0 over the class names; PADDING where padded
    objects: Tensor  # [N] int64, rising: the positions of the real objects in the flattened [B * G]

    def to(self, device: torch.device) -> "Targets":
        return Targets(*(field.to(device, non_blocking=device.type == "cuda") for field in self))


class Batch(NamedTuple):
    """B samples."""

    images: Tensor  # [B, S, S, 3] uint8, RGB
    targets: Targets
    indices: Tensor  # [B] int64: the crop that each image shows, as an index into `Crops`


@dataclass(frozen=True)
class Crops:
    """m crops of n photos; each goes through the network as an image."""

    photos: np.ndarray  # [m] int64: the photo of each crop
    edges: np.ndarray  # [m, 4] int32: (x1, y1, x2, y2) in the photo's pixels, counted from 0
    trained: np.ndarray  # [m] bool: whether training uses the crop and the validation loss counts it


def pad_targets(objects: Sequence[Tensor]) -> Targets:
    """Pad a list of tensors `[G, 5]`, one per image, with rows (x1, y1, x2, y2, label); `[0, 5]` without objects.

    Raises:
        ValueError: a tensor has another shape.
    """
    for i, rows in enumerate(objects):
        if rows.ndim != 2 or rows.shape[1] != 5:
            raise ValueError(f"targets[{i}]: expected shape [G, 5] (x1, y1, x2, y2, label), got {list(rows.shape)}")
    device = objects[0].device if objects else None
    num_slots = max((len(rows) for rows in objects), default=0)
    boxes = torch.zeros(len(objects), num_slots, 4, device=device)
    labels = torch.full((len(objects), num_slots), PADDING, dtype=torch.int64, device=device)
    positions = []
    for i, rows in enumerate(objects):
        boxes[i, : len(rows)] = rows[:, :4]
        labels[i, : len(rows)] = rows[:, 4].long()
        positions += range(i * num_slots, i * num_slots + len(rows))
    return Targets(boxes, labels, torch.tensor(positions, dtype=torch.int64, device=device))
