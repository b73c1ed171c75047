"""Made-up targets."""

import torch

from ssd.batch import Targets

# Four DBoxes by hand: two side by side in the upper half, a tall one in the middle, the whole image.
FOUR = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.5, 0.5, 0.2, 1.0], [0.5, 0.5, 1.0, 1.0]])


def targets_of(num_images: int, num_slots: int, num_objects: int, device: str) -> Targets:
    """Return uninitialised targets of this shape."""
    boxes = torch.empty(num_images, num_slots, 4, device=device)
    labels = torch.empty(num_images, num_slots, dtype=torch.int64, device=device)
    return Targets(boxes, labels, torch.empty(num_objects, dtype=torch.int64, device=device))


def random_objects(count: int, seed: int, smallest: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator)
    sizes = torch.rand(count, 2, generator=generator) * 0.6 + smallest
    boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1).clamp(0, 1)
    return boxes, torch.randint(0, 20, (count,), generator=generator)


def random_targets(counts: list[int], seed: int = 0) -> list[torch.Tensor]:
    images = [random_objects(count, seed + i) for i, count in enumerate(counts)]
    return [torch.cat([boxes, labels[:, None].float()], dim=1) for boxes, labels in images]
