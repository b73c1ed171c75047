"""Crops of photos with the objects in each: whole photos, and tiles of large ones."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from data.dataset.annotations import Annotations
from ssd.batch import Crops


@dataclass(frozen=True)
class LabelledCrops(Crops):
    """m crops of n photos, and their M objects, in a few arrays like `Annotations`.

    The first n crops are the whole photos. Then come the tiles of the first photo, of the second, ...
    """

    starts: np.ndarray  # [m + 1] int64: crop i has the objects starts[i] to starts[i + 1]
    boxes: np.ndarray  # [M, 4] float32 pixels: edges within the crop, clipped to it
    labels: np.ndarray  # [M] int64
    difficult: np.ndarray  # [M] bool

    @classmethod
    def whole(cls, photos: Annotations) -> Self:
        """Return whole photos only."""
        edges = np.concatenate([np.zeros_like(photos.sizes), photos.sizes], axis=1)
        indices, trained = np.arange(len(photos)), np.ones(len(photos), bool)
        return cls(indices, edges, trained, photos.starts, photos.boxes, photos.labels, photos.difficult)

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def sizes(self) -> np.ndarray:
        """Width and height of each crop `[m, 2]` int32, pixels."""
        return self.edges[:, 2:] - self.edges[:, :2]

    def objects(self, index: int) -> slice:
        """Return where one crop's objects are in `boxes`, `labels` and `difficult`."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def of_photo(self, photo: int, num_photos: int) -> list[int]:
        """Return the indices of the whole photo and its tiles."""
        first, end = np.searchsorted(self.photos[num_photos:], [photo, photo + 1]) + num_photos
        return [photo, *range(first, end)]

    def select(self, wanted: np.ndarray) -> Self:
        """Return the crops that are marked in `wanted` `[m]` bool."""
        counts = np.diff(self.starts)
        shown = np.repeat(wanted, counts)
        return replace(
            self,
            photos=self.photos[wanted],
            edges=self.edges[wanted],
            starts=np.concatenate([[0], counts[wanted]]).cumsum(),
            boxes=self.boxes[shown],
            labels=self.labels[shown],
            difficult=self.difficult[shown],
            trained=self.trained[wanted],
        )

    def of_training(self) -> Self:
        """Return the crops that training uses."""
        return self.select(self.trained)
