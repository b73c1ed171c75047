"""Decoded photos in memory, shared by all worker processes."""

import math
import mmap
from collections.abc import Callable

import cv2
import numpy as np

from data.transforms.augment import CROP_ASPECT, CROP_SCALE
from ssd.system.memory import USED, free_memory

# The narrowest crop, as a share of the photo's side.
NARROWEST = CROP_SCALE[0] * math.sqrt(CROP_ASPECT[0])


def reductions(sizes: np.ndarray, output: int) -> np.ndarray:
    """How many pixels of a photo become one in the cache, along either side: 1 leaves the photo as it is.

    A photo is reduced as long as the narrowest crop of it still has as many pixels as the network sees, so that no detail is
    lost that the network could have seen.

    Args:
        sizes: width and height of each photo `[n, 2]`, pixels.
        output: pixels a side of the network's input.
    """
    return np.maximum(sizes.min(axis=1) // math.ceil(output / NARROWEST), 1)


def cached_sizes(sizes: np.ndarray, output: int) -> np.ndarray:
    """Width and height of the photos as they are kept `[n, 2]`."""
    return -(-sizes // reductions(sizes, output)[:, None])


def cache_bytes(sizes: np.ndarray, output: int) -> int:
    """Memory that all photos take once each of them was read."""
    return int(cached_sizes(sizes, output).astype(np.int64).prod(axis=1).sum()) * 3


def fits(size: int, processes: int = 1) -> bool:
    """Whether caches of `size` bytes, one for each process on this machine, fit into its free memory, with room to spare."""
    return size * processes <= USED * free_memory()


class ImageCache:
    """One block of memory for all photos, filled as they are first read.

    The block is mapped before the workers are forked and shared by them: a photo that one has decoded, all have. Two
    that decode the same one at once write the same bytes. A worker that is not forked has a cache of its own: see
    `data.workers.num_caches`.

    Args:
        sizes: width and height of each photo `[n, 2]`, pixels.
        output: pixels a side of the network's input; photos of several times its size are kept smaller, see `reductions`.
    """

    def __init__(self, sizes: np.ndarray, output: int) -> None:
        self.arguments = (sizes, output)
        self.sizes = cached_sizes(sizes, output)
        self.ends = np.cumsum(self.sizes.astype(np.int64).prod(axis=1) * 3)
        self.bytes = int(self.ends[-1])
        self.pixels = np.frombuffer(mmap.mmap(-1, self.bytes), np.uint8)
        self.filled = np.frombuffer(mmap.mmap(-1, len(sizes)), np.uint8)

    def __reduce__(self) -> tuple[type["ImageCache"], tuple[np.ndarray, int]]:
        return ImageCache, self.arguments

    def get(self, index: int, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """Photo number `index`, `[H, W, 3]` uint8, whole or reduced; `read(index)` decodes it the first time."""
        width, height = self.sizes[index].tolist()
        end = int(self.ends[index])
        stored = self.pixels[end - width * height * 3 : end].reshape(height, width, 3)
        if not self.filled[index]:
            image = read(index)
            # A pixel is the mean of those that it stands for.
            stored[:] = (
                image if image.shape == stored.shape else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            )
            self.filled[index] = 1
        return stored
