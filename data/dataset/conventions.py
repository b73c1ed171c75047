"""Boxes that are written in another convention than their format has: they are told by where they lie."""

import numpy as np

# What makes the edges (x1, y1, x2, y2) of a box out of the four numbers that each convention writes.
CONVENTIONS = {
    "corners (x1, y1, x2, y2)": np.eye(4),
    "left, top, width and height": np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]),
    "centre, width and height": np.array([[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]]),
    "corners with y first (y1, x1, y2, x2)": np.eye(4)[[1, 0, 3, 2]],
}
READ_AS: dict[str, str] = dict(zip(("voc", "coco", "yolo"), CONVENTIONS, strict=False))
ROUNDING, PIXELS = 0.01, 2.5  # of a photo's side, or pixels, that edges may lie beyond it
MIN_OUTSIDE, MIN_SHARE = 3, 0.02  # boxes beyond their photo, and their share of all: fewer are slips of the hand
TIMES_FEWER = 10  # of them lie beyond it by the convention that is meant
MIN_NEAR = 5  # boxes near each side of their photo, by the convention that is meant
FAR, MAX_FAR = 0.05, 1 / 3  # of a photo's side that edges lie beyond it, and the share of such boxes
MAX_ASTRAY = 0.25  # share of boxes with their centre beyond the photo, where no convention fits
MAX_RELATIVE = 2.1  # of relative edges, also where corners are read as left, top, width and height


def fault_in(written: np.ndarray, sizes: np.ndarray, layout: str, place: str) -> str:
    """What is wrong with the boxes of a data set as a whole; empty where nothing is.

    Objects that a photo cuts off may be drawn whole, and all objects may lie in one corner: then another convention may fit by
    chance. So boxes are refused only where some lie astray, with their centre beyond the photo, where many reach far beyond it,
    or where by the convention that fits they come near every side of it.

    Args:
        written: edges in pixels `[m, 4]`, m at least 1, as they were read, before anything was clipped.
        sizes: width and height `[m, 2]` of the photo of each.
        layout: voc, coco or yolo.
        place: of one of them, in its file, or its photo.
    """
    if layout != "yolo" and written.max() <= MAX_RELATIVE < sizes.min():
        return (
            f"all {len(written)} boxes lie within 0..1, as if relative to their photo ({place}, ...); pixels are expected: "
            "export them again"
        )
    read_as = READ_AS[layout]
    unit = np.tile(sizes if layout == "yolo" else np.ones_like(sizes), 2)  # of the numbers, in pixels
    numbers = written / unit @ np.linalg.inv(CONVENTIONS[read_as]).T
    edges = {name: numbers @ to_edges.T * unit for name, to_edges in CONVENTIONS.items()}
    outside = {name: int((~_fits(each, sizes)).sum()) for name, each in edges.items()}
    count = outside[read_as]
    if count < MIN_OUTSIDE or count <= MIN_SHARE * len(written):
        return ""
    centres = np.tile(written[:, :2] + written[:, 2:], 2) / 2
    astray = int((~_fits(centres, sizes)).sum())
    far = int((~_fits(written, sizes, FAR)).sum())
    told = f"{count} of {len(written)} boxes reach beyond their photo ({place}, ...), read as {read_as}"
    fewest = min(outside.values())
    fitting = [name for name, num_outside in outside.items() if num_outside == fewest]
    is_certain = (
        astray >= MIN_OUTSIDE
        or far > max(MIN_OUTSIDE, MAX_FAR * len(written))
        or _num_near(edges[fitting[0]], sizes) >= MIN_NEAR
    )
    if fewest * TIMES_FEWER <= count and is_certain:
        either = " or ".join(fitting)
        return f"{told}; as {either} they fit: write {read_as}, as {layout.upper()} has it, or export them again"
    if astray >= MIN_OUTSIDE and astray > MAX_ASTRAY * len(written):
        return f"{told}; if they were drawn on photos of another size, put those here, or export them again"
    return ""


def _fits(edges: np.ndarray, sizes: np.ndarray, share: float = ROUNDING) -> np.ndarray:
    """Which boxes `[m]` are the right way round, and lie within their photos, but for this share of a side."""
    ends = np.tile(sizes, 2)
    slack = np.maximum(share * ends, PIXELS)
    within = np.logical_and(edges >= -slack, edges <= ends + slack)
    return np.all(np.column_stack([within, edges[:, 2:] >= edges[:, :2]]), axis=1)


def _num_near(edges: np.ndarray, sizes: np.ndarray) -> int:
    """How many boxes are nearer to a side of their photo than half of their own size, at the side with the fewest; boxes above
    a third of the photo are near every side, which tells nothing."""
    lengths = edges[:, 2:] - edges[:, :2]
    gaps = np.column_stack([edges[:, :2], sizes - edges[:, 2:]])
    near = np.logical_and(gaps < np.tile(lengths, 2) / 2, np.tile(lengths < sizes / 3, 2))
    return int(near.sum(axis=0).min())
