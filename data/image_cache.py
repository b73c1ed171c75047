"""Decoded photos in memory, shared by all worker processes."""

import mmap
from collections.abc import Callable

import numpy as np


class ImageCache:
    """One block of memory for all photos, filled as they are first read.

    The block is mapped before the workers are forked and shared by them: a photo that one has decoded, all have. Two
    that decode the same one at once write the same bytes.

    Args:
        sizes: width and height of each photo `[n, 2]`, pixels.
    """

    def __init__(self, sizes: np.ndarray) -> None:
        self.sizes = sizes
        self.ends = np.cumsum(sizes.astype(np.int64).prod(axis=1) * 3)
        self.pixels = np.frombuffer(mmap.mmap(-1, int(self.ends[-1])), np.uint8)
        self.filled = np.frombuffer(mmap.mmap(-1, len(sizes)), np.uint8)

    def get(self, index: int, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """Photo number `index`, `[H, W, 3]` uint8; `read(index)` decodes it the first time."""
        width, height = self.sizes[index].tolist()
        end = int(self.ends[index])
        stored = self.pixels[end - width * height * 3 : end].reshape(height, width, 3)
        if not self.filled[index]:
            stored[:] = read(index)
            self.filled[index] = 1
        return stored
