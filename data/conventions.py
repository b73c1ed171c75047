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
ROUNDING, PIXELS = 0.01, 1.5  # of a photo's side, or pixels, that edges may lie beyond it
MIN_OUTSIDE, MIN_SHARE = 3, 0.02  # boxes beyond their photo, and their share of all: fewer are slips of the hand
TIMES_FEWER = 10  # of them lie beyond it by the convention that is meant
MAX_SHARE = 1 / 3  # that may lie beyond it where no convention fits


def fault_in(written: np.ndarray, sizes: np.ndarray, layout: str, place: str) -> str:
    """What is wrong with the boxes of a data set as a whole; empty where nothing is.

    Args:
        written: edges in pixels `[m, 4]`, m at least 1, as they were read, before anything was clipped.
        sizes: width and height `[m, 2]` of the photo of each.
        layout: voc, coco or yolo.
        place: of one of them, in its file, or its photo.
    """
    if layout != "yolo" and written.max() <= 1 < sizes.min():
        return (
            f"all {len(written)} boxes lie within 0..1, as if relative to their photo ({place}, ...); pixels are expected: "
            "export them again"
        )
    read_as = READ_AS[layout]
    unit = np.tile(sizes if layout == "yolo" else np.ones_like(sizes), 2)  # of the numbers, in pixels
    numbers = written / unit @ np.linalg.inv(CONVENTIONS[read_as]).T
    outside = {name: int((~_fits(numbers @ to_edges.T * unit, sizes)).sum()) for name, to_edges in CONVENTIONS.items()}
    fewest = min(outside.values())
    count = outside[read_as]
    told = f"{count} of {len(written)} boxes reach beyond their photo ({place}, ...), read as {read_as}"
    if count < MIN_OUTSIDE or count <= MIN_SHARE * len(written):
        return ""
    if fewest * TIMES_FEWER <= count:
        fitting = " or ".join(name for name, num_outside in outside.items() if num_outside == fewest)
        return f"{told}; as {fitting} they fit: write {read_as}, as {layout.upper()} has it, or export them again"
    if count > MAX_SHARE * len(written):
        return f"{told}; if they were drawn on photos of another size, put those here, or export them again"
    return ""


def _fits(edges: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes `[m]` are the right way round, and lie within their photos, but for rounding."""
    ends = np.tile(sizes, 2)
    slack = np.maximum(ROUNDING * ends, PIXELS)
    within = np.logical_and(edges >= -slack, edges <= ends + slack)
    return np.all(np.column_stack([within, edges[:, 2:] >= edges[:, :2]]), axis=1)
