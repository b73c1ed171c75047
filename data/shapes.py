"""The embedded photos: coloured shapes on textured backgrounds, drawn from a seed and written in VOC layout.

For the quick start and the tests: nothing to download, and every image can be redrawn.
"""

import multiprocessing
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np

EMPTY_SHARE = 0.05  # images without objects
MAX_SHAPES = 5  # per image
CROWDED = 0.2  # probability that a shape is placed beside or on an earlier one
SIDES = (0.12, 0.6)  # diameter of a shape, as a share of the image's shorter side
HIDDEN_DIFFICULT = 0.4  # a shape covered by others to this share is marked difficult
HIDDEN_LOST = 0.85  # and to this share it is not annotated
# Large images with small shapes, in pixels:
LARGE_SIDE = 1200
CELL = 40  # each shape has a cell to itself
SMALL_SIDES = (8 / CELL, 20 / CELL)  # diameter of a shape, as a share of its cell
SMALL_SHAPES = (10, 40)  # per image


class Shape(NamedTuple):
    """One object: its name, and the box of its visible pixels as in VOC (inclusive, counted from 1)."""

    name: str
    xmin: int
    ymin: int
    xmax: int
    ymax: int
    difficult: bool


Draw = Callable[[int, int], tuple[np.ndarray, list[Shape]]]  # seed, index -> [H, W, 3] uint8 RGB, and its objects


def _circle() -> np.ndarray:
    angles = np.arange(64) * 2 * np.pi / 64
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(corners: int, inner: float = 1.0) -> np.ndarray:
    """Return a regular polygon, or, with `inner` below 1, a star with its inner corners at that radius."""
    count = corners if inner == 1.0 else 2 * corners
    angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
    radius = np.where(np.arange(count) % 2, inner, 1.0) if inner != 1.0 else np.ones(count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]


def _cross() -> np.ndarray:
    arm, half = 1.0, 0.33
    quarter = np.array([(half, half), (half, arm), (-half, arm)])
    turn = np.array([[0, -1], [1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, i).T for i in range(4)])


# Outlines in the unit circle.
OUTLINES: dict[str, Callable[[], np.ndarray]] = {
    "circle": _circle,
    "square": lambda: _regular(4),
    "triangle": lambda: _regular(3),
    "star": lambda: _regular(5, inner=0.42),
    "cross": _cross,
}
CLASSES = tuple(OUTLINES)


def draw_image(seed: int, index: int) -> tuple[np.ndarray, list[Shape]]:
    """Draw image `index` of this seed: `[H, W, 3]` uint8 RGB, and its objects."""
    rng = np.random.default_rng((seed, index))
    height, width = (int(side) for side in rng.integers(240, 401, 2))
    image = _background(rng, height, width)
    num_shapes = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, MAX_SHAPES + 1))
    names, masks, centers = [], [], []
    for _ in range(num_shapes):
        names.append(CLASSES[rng.integers(len(CLASSES))])
        near = centers[rng.integers(len(centers))] if centers and rng.random() < CROWDED else None
        mask, center = _mask(rng, OUTLINES[names[-1]](), height, width, near)
        masks.append(mask)
        centers.append(center)
        _paint(rng, image, mask)
    return _pixels(rng, image), _visible(names, masks)


def draw_small_shapes(seed: int, index: int) -> tuple[np.ndarray, list[Shape]]:
    """Draw a large image with small shapes that do not touch, like `draw_image`."""
    rng = np.random.default_rng((seed, index, 1))
    image = _background(rng, LARGE_SIDE, LARGE_SIDE)
    across = LARGE_SIDE // CELL
    places = rng.permutation(across**2)[: rng.integers(SMALL_SHAPES[0], SMALL_SHAPES[1] + 1)]
    found = []
    for place in places.tolist():
        left, top = place % across * CELL, place // across * CELL
        name = CLASSES[rng.integers(len(CLASSES))]
        mask, _ = _mask(rng, OUTLINES[name](), CELL, CELL, None, SMALL_SIDES)
        _paint(rng, image[top : top + CELL, left : left + CELL], mask)
        (shape,) = _visible([name], [mask])
        corners = (shape.xmin + left, shape.ymin + top, shape.xmax + left, shape.ymax + top)
        found.append(Shape(name, *corners, difficult=False))
    return _pixels(rng, image), found


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return noise at several scales around a colour, sometimes with stripes: `[H, W, 3]` float32."""
    image = np.zeros((height, width, 3), np.float32) + rng.uniform(40, 215, 3).astype(np.float32)
    for cells in (3, 8, 24, 80):
        noise = rng.normal(0, 1, (cells, cells, 3 if rng.random() < 0.5 else 1)).astype(np.float32)
        noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, -1)
        image += noise * np.float32(rng.uniform(2, 22))
    if rng.random() < 0.4:
        angle, period = rng.uniform(0, np.pi), rng.uniform(8, 60)
        x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
        stripes = np.sin((x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) * np.float32(2 * np.pi / period))
        image += stripes[..., None] * np.float32(rng.uniform(5, 30))
    return image


def _mask(
    rng: np.random.Generator,
    outline: np.ndarray,
    height: int,
    width: int,
    near: np.ndarray | None,
    sides: tuple[float, float] = SIDES,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a shape of random size and angle as coverage of each pixel, `[H, W]` float32 in 0..1, and its centre (x, y)."""
    low, high = (min(height, width) * side / 2 for side in sides)
    radius = np.exp(rng.uniform(np.log(low), np.log(high)))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([1.0, rng.uniform(0.8, 1.0)])
    # Mostly inside: the frame may truncate it.
    first, last = np.full(2, radius * 0.7), np.array([width, height]) - radius * 0.7
    center = rng.uniform(first, last) if near is None else np.clip(near + rng.normal(0, radius * 0.6, 2), first, last)
    points = (outline * stretch) @ turn.T * radius + center
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(points * 256).astype(np.int32)], 255, cv2.LINE_AA, shift=8)
    return mask.astype(np.float32) / 255, center


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    """Paint a shape with a colour gradient that stands out from the background."""
    inside = mask > 0.5
    behind = image[inside].mean(axis=0) if inside.any() else np.full(3, 128.0)
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - behind).max() < 70:
        colour = rng.uniform(0, 255, 3)
    direction = rng.normal(0, 1, 2)
    left, top, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
    x = np.linspace(-1, 1, image.shape[1], dtype=np.float32)[left : left + width]
    y = np.linspace(-1, 1, image.shape[0], dtype=np.float32)[top : top + height, None]
    shade = 1 + 0.25 * (x * direction[0] + y * direction[1]) / np.abs(direction).sum()
    part = image[top : top + height, left : left + width]
    layer = (colour * shade[..., None]).astype(np.float32)
    part += mask[top : top + height, left : left + width, None] * (layer - part)


def _pixels(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add sensor noise, and convert to bytes."""
    image += rng.standard_normal(image.shape, np.float32) * 4
    return np.clip(image, 0, 255).astype(np.uint8)


def _visible(names: list[str], masks: list[np.ndarray]) -> list[Shape]:
    """Return the objects to annotate, with boxes around the pixels that later shapes do not cover."""
    shapes = []
    for i, (name, mask) in enumerate(zip(names, masks, strict=True)):
        whole = mask > 0.5
        visible = whole.copy()
        for later in masks[i + 1 :]:
            visible &= later <= 0.5
        hidden = 1 - visible.sum() / max(1, whole.sum())
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        if hidden >= HIDDEN_LOST or len(rows) < 3 or len(columns) < 3:
            continue
        corners = (int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1)
        shapes.append(Shape(name, *corners, difficult=bool(hidden >= HIDDEN_DIFFICULT)))
    return shapes


def write_shapes(
    folder: Path,
    num_train: int,
    num_val: int,
    seed: int = 0,
    processes: int = 1,
    progress: Callable[[int, int], object] = lambda done, total: None,
    draw: Draw = draw_image,
) -> None:
    """Draw images and write them in VOC layout, with the splits train, val and trainval.

    Args:
        folder: created if missing; files of the same names are overwritten.
        num_train: images of the split `train`.
        num_val: images of the split `val`, which are not in `train`.
        seed: of the images.
        processes: share the work; the files do not depend on their number.
        progress: receives the number of images done and in all.
        draw: `draw_image` or `draw_small_shapes`.
    """
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    total = num_train + num_val
    write = partial(_write_image, folder, seed, draw)
    if processes > 1:
        # Spawned: if this process has used OpenCV's threads, a forked one would wait forever for one of their locks.
        with multiprocessing.get_context("spawn").Pool(processes, _init_process) as pool:
            for done, _ in enumerate(pool.imap(write, range(total), chunksize=8), start=1):
                progress(done, total)
    else:
        for index in range(total):
            write(index)
            progress(index + 1, total)
    names = [f"{index:06d}\n" for index in range(total)]
    for split, part in (("train", names[:num_train]), ("val", names[num_train:]), ("trainval", names)):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(part), encoding="utf-8")


def _init_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles it, and ends the others
    cv2.setNumThreads(1)


def _write_image(folder: Path, seed: int, draw: Draw, index: int) -> None:
    image, shapes = draw(seed, index)
    name = f"{index:06d}"
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    (folder / "JPEGImages" / f"{name}.jpg").write_bytes(encoded.tobytes())
    write_annotation(folder / "Annotations" / f"{name}.xml", f"{name}.jpg", image.shape[1], image.shape[0], shapes)


def write_annotation(path: Path, filename: str, width: int, height: int, shapes: list[Shape]) -> None:
    """Write one VOC annotation file."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = filename
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for shape in shapes:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = shape.name
        ElementTree.SubElement(item, "difficult").text = str(int(shape.difficult))
        box = ElementTree.SubElement(item, "bndbox")
        for corner in ("xmin", "ymin", "xmax", "ymax"):
            ElementTree.SubElement(box, corner).text = str(getattr(shape, corner))
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8")
