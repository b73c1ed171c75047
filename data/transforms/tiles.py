"""Cut large photos into tiles for training and evaluation, with the objects in each tile."""

import numpy as np

from data.dataset.annotations import Annotations
from data.dataset.crops import LabelledCrops
from ssd.config.schema import TilesConfig
from ssd.inference.tiles import places_within, tile_edges, tile_starts


def cut_tiles(photos: Annotations, options: TilesConfig, seed: int) -> LabelledCrops:
    """Return all photos, whole, and the tiles of those that are larger than a tile.

    An object belongs to each tile that contains at least `options.keep` of its area, and is clipped to the tile. With less, its
    visible pixels are background. `seed` is for drawing the tiles without objects that training uses.
    """
    whole = LabelledCrops.whole(photos)
    owners, edges = tile_edges(photos.sizes, options.size, options.overlap)
    rows, shown = _overlapping(photos, options)
    corner = np.tile(edges[shown, :2], 2)
    size = np.tile(edges[shown, 2:] - edges[shown, :2], 2)
    boxes = photos.boxes[rows].astype(np.float64)
    clipped = np.clip(boxes - corner, 0, size)
    enough = _area(clipped) / _area(boxes) >= options.keep
    rows, shown, clipped = rows[enough], shown[enough], clipped[enough]
    counts = np.bincount(shown, minlength=len(edges))
    drawn = np.random.default_rng((seed, len(edges))).random(len(edges)) < options.background
    return LabelledCrops(
        photos=np.concatenate([whole.photos, owners]),
        edges=np.concatenate([whole.edges, edges]),
        starts=np.concatenate([whole.starts, whole.starts[-1] + counts.cumsum()]),
        boxes=np.concatenate([whole.boxes, clipped.astype(np.float32)]),
        labels=np.concatenate([whole.labels, photos.labels[rows]]),
        difficult=np.concatenate([whole.difficult, photos.difficult[rows]]),
        trained=np.concatenate([whole.trained, (counts > 0) | drawn]),
    )


def _overlapping(photos: Annotations, tiles: TilesConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of an object and a tile that overlap: rows of `photos.boxes`, and tile numbers in rising order."""
    owners = np.repeat(np.arange(len(photos)), np.diff(photos.starts))
    of_large = np.flatnonzero((photos.sizes[owners] > tiles.size).any(axis=1))
    owners, boxes = owners[of_large], photos.boxes[of_large]
    (columns, first_x, num_x), (rows, first_y, num_y) = (
        _touched(photos.sizes[:, axis], owners, boxes[:, axis], boxes[:, axis + 2], tiles) for axis in (0, 1)
    )
    num_tiles = np.where((photos.sizes > tiles.size).any(axis=1), columns * rows, 0)
    pair, place = np.repeat(np.arange(len(owners)), num_x * num_y), places_within(num_x * num_y)
    x, y = first_x[pair] + place % num_x[pair], first_y[pair] + place // num_x[pair]
    tile = (num_tiles.cumsum() - num_tiles)[owners[pair]] + y * columns[owners[pair]] + x
    order = tile.argsort(kind="stable")
    return of_large[pair[order]], tile[order]


def _touched(
    sides: np.ndarray, owners: np.ndarray, low: np.ndarray, high: np.ndarray, tiles: TilesConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, along one axis, each photo's number of tiles `[n]`, and each object's first tile and number of tiles `[k]`.

    Args:
        sides: of the photos `[n]`, pixels.
        owners: the photo of each object `[k]`.
        low: where each object begins `[k]`, pixels.
        high: where each object ends `[k]`, pixels.
        tiles: their size and overlap.
    """
    counts, starts = tile_starts(sides, tiles.size, tiles.overlap)
    # Search all photos at once: lay them end to end, farther apart than a tile is long.
    apart = int(sides.max(initial=0)) + 2 * tiles.size
    places = starts + np.repeat(np.arange(len(sides)), counts) * apart
    first = np.searchsorted(places, owners * apart + np.floor(low).astype(np.int64) - tiles.size, side="right")
    end = np.searchsorted(places, owners * apart + np.ceil(high).astype(np.int64), side="left")
    return counts, first - (counts.cumsum() - counts)[owners], end - first


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
