"""The tiles that large photos are cut into."""

import math
from typing import NamedTuple

import numpy as np


class Tiles(NamedTuple):
    """The windows that a large photo is cut into; the network sees each as a photo of its own, beside the whole one."""

    size: int  # pixels of the photo a side
    overlap: float  # least share of their side that neighbours have in common


def tile_starts(sides: np.ndarray, tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
    """Where tiles begin along one side of each photo: evenly spread, the first and the last flush with the photo's edges.

    Args:
        sides: of n photos `[n]`, pixels.
        tiles: their size and overlap.

    Returns:
        The number of tiles along each photo's side `[n]` int64, at least 1, and where they begin, pixels from 0, those of one
        photo after those of the other `[sum of the numbers]` int64.
    """
    in_common = math.ceil(tiles.overlap * tiles.size - 1e-6)  # a whole number may come out a little larger
    spare = np.maximum(sides.astype(np.int64) - tiles.size, 0)
    counts = -(-spare // max(tiles.size - in_common, 1)) + 1
    starts = np.repeat(spare, counts) * places_within(counts) // np.repeat(np.maximum(counts - 1, 1), counts)
    return counts, starts


def tile_windows(sizes: np.ndarray, tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
    """The tiles of photos, row by row; none of a photo that no tile is smaller than.

    Args:
        sizes: width and height of n photos `[n, 2]`, pixels.
        tiles: their size and overlap.

    Returns:
        The photo that each tile is of `[T]` int64, rising, and its edges (x1, y1, x2, y2) in that photo's pixels, counted from
        0 `[T, 4]` int32. No tile reaches beyond its photo: where a side is shorter than a tile, so is the tile's.
    """
    widths, heights = sizes.T
    (columns, lefts), (rows, tops) = tile_starts(widths, tiles), tile_starts(heights, tiles)
    counts = np.where((sizes > tiles.size).any(axis=1), columns * rows, 0)
    photo, place = np.repeat(np.arange(len(sizes)), counts), places_within(counts)
    x1 = lefts[(columns.cumsum() - columns)[photo] + place % columns[photo]]
    y1 = tops[(rows.cumsum() - rows)[photo] + place // columns[photo]]
    x2, y2 = np.minimum(x1 + tiles.size, widths[photo]), np.minimum(y1 + tiles.size, heights[photo])
    return photo, np.stack([x1, y1, x2, y2], axis=1).astype(np.int32)


def places_within(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... counts[i] - 1 for each i, one after the other `[sum of counts]` int64."""
    return np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
