"""Samples to a batch."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from data.transforms.augment import Augmentation
from data.transforms.render import render
from ssd.batch import Batch, pad_targets


class Sample(NamedTuple):
    """One crop of a photo, before it is rendered."""

    position: int  # in the dataset
    image: np.ndarray  # [H, W, 3] uint8, RGB
    augmentation: Augmentation
    labels: np.ndarray  # [m] of the augmentation's boxes


def collate(samples: Iterable[Sample], count: int, size: int, fill: tuple[int, int, int]) -> Batch:
    """Render `count` samples straight into one batch, with their objects padded to the largest number.

    Args:
        samples: may be a generator, so that only one photo is in memory at a time.
        count: number of samples.
        size: of the batch's images, pixels a side.
        fill: colour (R, G, B) outside of the photo.
    """
    images = torch.empty(count, size, size, 3, dtype=torch.uint8)
    indices, objects = [], []
    for sample, out in zip(samples, images.numpy(), strict=True):
        render(sample.image, sample.augmentation, fill, out)
        indices.append(sample.position)
        objects.append(torch.from_numpy(np.column_stack([sample.augmentation.boxes, sample.labels])).float())
    return Batch(images, pad_targets(objects), torch.tensor(indices))
