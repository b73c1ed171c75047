"""Batches without content."""

import torch

from ssd.batch import Targets


def targets_of(num_images: int, num_slots: int, num_objects: int, device: str) -> Targets:
    """Targets of this shape, uninitialised."""
    boxes = torch.empty(num_images, num_slots, 4, device=device)
    labels = torch.empty(num_images, num_slots, dtype=torch.int64, device=device)
    return Targets(boxes, labels, torch.empty(num_objects, dtype=torch.int64, device=device))
