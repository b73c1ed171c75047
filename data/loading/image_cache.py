"""Decoded photos in memory, shared by all worker processes."""

import math
import mmap
from collections.abc import Callable

import cv2
import numpy as np

from data.transforms.augment import CROP_ASPECT, CROP_SCALE
from ssd.preprocessing import reduced, resize
from ssd.system.memory import USED, free_memory

NARROWEST = CROP_SCALE[0] * math.sqrt(CROP_ASPECT[0])  # smallest width of a crop, as a share of the photo's


def reductions(sizes: np.ndarray, output: int) -> np.ndarray:
    """Return the factors by which photos are reduced `[n]`; 1 leaves a photo as it is.

    A photo is reduced only as long as its narrowest crop still has as many pixels as the network's input, so that no visible
    detail is lost.

    Args:
        sizes: width and height of each photo `[n, 2]`, pixels.
        output: side of the network's input, pixels.
    """
    return np.maximum(sizes.min(axis=1) // math.ceil(output / NARROWEST), 1)


def cached_sizes(sizes: np.ndarray, output: int) -> np.ndarray:
    """Return width and height of the photos in the cache `[n, 2]`."""
    return reduced(sizes, reductions(sizes, output)[:, None])


def cache_bytes(sizes: np.ndarray, output: int) -> int:
    """Return the memory of a cache that holds all photos."""
    return int(cached_sizes(sizes, output).astype(np.int64).prod(axis=1).sum()) * 3


def fits(size: int, processes: int = 1) -> bool:
    """Return whether a cache of `size` bytes for each process on this machine fits into its free memory, with room to spare."""
    return size * processes <= USED * free_memory()


class ImageCache:
    """One block of memory for all photos, filled as they are first read.

    Forked workers share the block, so each photo is decoded once for all. If two decode a photo at the same time, they write
    the same bytes. A spawned worker has its own cache: see `data.loading.workers.num_caches`.

    Args:
        sizes: width and height of each photo `[n, 2]`, pixels.
        output: side of the network's input, pixels; much larger photos are kept smaller, see `reductions`.
    """

    def __init__(self, sizes: np.ndarray, output: int) -> None:
        self.arguments = (sizes, output)
        self.reductions = reductions(sizes, output)
        self.sizes = cached_sizes(sizes, output)
        self.ends = np.cumsum(self.sizes.astype(np.int64).prod(axis=1) * 3)
        self.bytes = int(self.ends[-1])
        self.pixels = np.frombuffer(mmap.mmap(-1, self.bytes), np.uint8)
        self.filled = np.frombuffer(mmap.mmap(-1, len(sizes)), np.uint8)

    def __reduce__(self) -> tuple[type["ImageCache"], tuple[np.ndarray, int]]:
        return ImageCache, self.arguments

    def get(self, index: int, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """Return photo `index`, `[H, W, 3]` uint8, whole or reduced. The first time, `read(index)` decodes it."""
        width, height = self.sizes[index].tolist()
        end = int(self.ends[index])
        stored = self.pixels[end - width * height * 3 : end].reshape(height, width, 3)
        if not self.filled[index]:
            image = read(index)
            # INTER_AREA: each pixel is the mean of those it replaces.
            stored[:] = image if image.shape == stored.shape else resize(image, width, height, cv2.INTER_AREA)
            self.filled[index] = 1
        return stored
