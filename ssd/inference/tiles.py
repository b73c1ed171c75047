"""Where the overlapping tiles of large photos lie."""

import math

import numpy as np


def tile_starts(sides: np.ndarray, size: int, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Return where tiles begin along one side of each photo: evenly spaced, the first and last flush with the photo's edges.

    Args:
        sides: lengths of the sides of n photos `[n]`, pixels.
        size: side of a tile, pixels.
        overlap: minimum overlap of neighbouring tiles, as a share of `size`.

    Returns:
        The number of tiles along each side `[n]` int64, at least 1, and all starts, pixels from 0, concatenated photo by photo
        `[sum of the numbers]` int64.
    """
    in_common = math.ceil(overlap * size - 1e-6)  # the product of an exact overlap may round up
    spare = np.maximum(sides.astype(np.int64) - size, 0)
    counts = -(-spare // max(size - in_common, 1)) + 1
    starts = np.repeat(spare, counts) * places_within(counts) // np.repeat(np.maximum(counts - 1, 1), counts)
    return counts, starts


def tile_edges(sizes: np.ndarray, size: int, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles of photos, row by row; none for photos that fit into one tile.

    Args:
        sizes: widths and heights of n photos `[n, 2]`, pixels.
        size: side of a tile, pixels.
        overlap: minimum overlap of neighbouring tiles, as a share of `size`.

    Returns:
        The photo of each tile `[T]` int64, rising, and its edges (x1, y1, x2, y2) `[T, 4]` int32, in the photo's pixels counted
        from 0. Tiles never reach beyond their photo: a side shorter than `size` shortens the tile.
    """
    widths, heights = sizes.T
    (columns, lefts), (rows, tops) = (tile_starts(sides, size, overlap) for sides in (widths, heights))
    counts = np.where((sizes > size).any(axis=1), columns * rows, 0)
    photo, place = np.repeat(np.arange(len(sizes)), counts), places_within(counts)
    x1 = lefts[(columns.cumsum() - columns)[photo] + place % columns[photo]]
    y1 = tops[(rows.cumsum() - rows)[photo] + place // columns[photo]]
    x2, y2 = np.minimum(x1 + size, widths[photo]), np.minimum(y1 + size, heights[photo])
    return photo, np.stack([x1, y1, x2, y2], axis=1).astype(np.int32)


def places_within(counts: np.ndarray) -> np.ndarray:
    """Return 0, 1, ... counts[i] - 1 for each i, concatenated `[sum of counts]` int64."""
    return np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
