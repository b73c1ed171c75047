"""Detect boxes written in a convention other than their format's, from their places in the photos."""

import numpy as np

# For each convention: the matrix that turns its four numbers into edges (x1, y1, x2, y2).
CONVENTIONS = {
    "corners (x1, y1, x2, y2)": np.eye(4),
    "left, top, width and height": np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]),
    "centre, width and height": np.array([[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]]),
    "corners with y first (y1, x1, y2, x2)": np.eye(4)[[1, 0, 3, 2]],
}
ROUNDING, PIXELS = 0.01, 2.5  # tolerance at the photo's border: a share of its side, or pixels
MIN_OUTSIDE, MIN_SHARE = 3, 0.02  # least number and share of boxes outside their photo; fewer are single mistakes
TIMES_FEWER = 10  # the convention that fits has this many times fewer boxes outside
MIN_NEAR = 5  # least number of boxes near each side of their photo, in the convention that fits
FAR, MAX_FAR = 0.05, 1 / 3  # edges this share of a side outside are far; the largest share of such boxes
MAX_STRAY = 0.25  # largest share of boxes with their centre outside the photo, if no convention fits
MAX_RELATIVE = 2.1  # largest relative edge, even if corners are read as left, top, width and height


def convention_fault(written: np.ndarray, sizes: np.ndarray, read_as: str, is_relative: bool, place: str) -> str:
    """Return the fault of a folder's boxes as a whole; empty if there is none.

    Another convention may fit by chance: truncated objects may be drawn whole, or all objects may lie in one corner. So boxes
    are refused only if some have their centre outside the photo, if many reach far beyond it, or if the convention that fits
    puts boxes near every side of the photo.

    Args:
        written: edges in pixels `[m, 4]`, m at least 1, as read, before clipping.
        sizes: width and height `[m, 2]` of each box's photo.
        read_as: the format's convention, a key of `CONVENTIONS`.
        is_relative: whether the format's numbers are relative to the photo.
        place: of one of the boxes: in its file, or its photo.
    """
    if not is_relative and written.max() <= MAX_RELATIVE < sizes.min():
        return (
            f"all {len(written)} boxes lie within 0..1, as if relative to their photo ({place}, ...), but pixels are expected; "
            "export them again"
        )
    unit = np.tile(sizes if is_relative else np.ones_like(sizes), 2)  # pixels per written unit
    numbers = written / unit @ np.linalg.inv(CONVENTIONS[read_as]).T
    edges = {name: numbers @ to_edges.T * unit for name, to_edges in CONVENTIONS.items()}
    outside = {name: int((~_fits(each, sizes)).sum()) for name, each in edges.items()}
    count = outside[read_as]
    if count < MIN_OUTSIDE or count <= MIN_SHARE * len(written):
        return ""
    centres = np.tile(written[:, :2] + written[:, 2:], 2) / 2
    stray = int((~_fits(centres, sizes)).sum())
    far = int((~_fits(written, sizes, FAR)).sum())
    found = f"{count} of {len(written)} boxes reach beyond their photo ({place}, ...), read as {read_as}"
    fewest = min(outside.values())
    fitting = [name for name, num_outside in outside.items() if num_outside == fewest]
    is_certain = (
        stray >= MIN_OUTSIDE
        or far > max(MIN_OUTSIDE, MAX_FAR * len(written))
        or _num_near(edges[fitting[0]], sizes) >= MIN_NEAR
    )
    if fewest * TIMES_FEWER <= count and is_certain:
        either = " or ".join(fitting)
        return f"{found}; as {either} they would fit: convert them to {read_as}, or export them again"
    if stray >= MIN_OUTSIDE and stray > MAX_STRAY * len(written):
        return f"{found}; if they were drawn on photos of another size, use those photos, or export again"
    return ""


def _fits(edges: np.ndarray, sizes: np.ndarray, share: float = ROUNDING) -> np.ndarray:
    """Return which boxes `[m]` are not inverted and lie within their photos, with a tolerance of this share of a side."""
    ends = np.tile(sizes, 2)
    slack = np.maximum(share * ends, PIXELS)
    within = np.logical_and(edges >= -slack, edges <= ends + slack)
    return np.all(np.column_stack([within, edges[:, 2:] >= edges[:, :2]]), axis=1)


def _num_near(edges: np.ndarray, sizes: np.ndarray) -> int:
    """Return the number of boxes near a side of their photo, for the side with the fewest.

    Near means closer than half of the box's own size. Boxes larger than a third of the photo are ignored: they are near
    every side.
    """
    lengths = edges[:, 2:] - edges[:, :2]
    gaps = np.column_stack([edges[:, :2], sizes - edges[:, 2:]])
    near = np.logical_and(gaps < np.tile(lengths, 2) / 2, np.tile(lengths < sizes / 3, 2))
    return int(near.sum(axis=0).min())
