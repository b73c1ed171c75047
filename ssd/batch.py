"""What travels between loader, network and loss: NamedTuples of tensors, which the loader can pin and move as they are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PADDING = -1  # the label of a row of `Targets` that is no object


class Targets(NamedTuple):
    """The objects of B images, padded to G a image; G is 0 when no image has any.

    `objects` says where the real ones are, known to the host when the batch is made: with it, nobody has to look for
    them with a mask, which would make the host wait for the device.
    """

    boxes: Tensor  # [B, G, 4] float32 corners (x1, y1, x2, y2), relative to the image; 0 where padded
    labels: Tensor  # [B, G] int64, counted from 0 over the class names; PADDING where padded
    objects: Tensor  # [N] int64, rising: the positions of the real objects in the flattened [B * G]

    def to(self, device: torch.device) -> "Targets":
        return Targets(*(field.to(device, non_blocking=device.type == "cuda") for field in self))


class Batch(NamedTuple):
    """B samples as the network takes them."""

    images: Tensor  # [B, 300, 300, 3] uint8, RGB
    targets: Targets
    indices: Tensor  # [B] int64: the samples' places in their data set


def pad_targets(objects: Sequence[Tensor]) -> Targets:
    """Pads a list of `[G, 5]` tensors, rows (x1, y1, x2, y2, label), one for each image; `[0, 5]` for one without objects.

    Raises:
        ValueError: an entry is not of that shape.
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
