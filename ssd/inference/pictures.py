"""Photos with labelled boxes drawn on them."""

import base64
from collections.abc import Sequence

import cv2
import numpy as np

TRUTH = (255, 255, 255)  # colour of ground truth, RGB

FONT = "sans"  # built into OpenCV, with a fallback for most alphabets
FONT_WEIGHT = 500  # of 100 to 1000


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` indices of `count` photos, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(int)).tolist()


def class_colour(label: int) -> tuple[int, int, int]:
    """Return a bright colour (R, G, B) distinct from those of nearby labels: hues are a golden angle apart."""
    hue = int(label * 0.618034 * 180) % 180
    red, green, blue = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    colour: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Return a copy of a photo with labelled boxes.

    Args:
        image: `[H, W, 3]` uint8, RGB.
        boxes: `[n, 4]` edges (x1, y1, x2, y2) in its pixels, counted from 0; the first box's label is on top.
        labels: `[n]`, from 0 over `names`.
        names: of the classes.
        scores: `[n]`, written beside the names.
        colour: of all boxes; by default each class has its own.
    """
    image = image.copy()
    corners = _pixels_within(boxes, image.shape[1], image.shape[0]).tolist()
    colours = [colour or class_colour(int(label)) for label in labels]
    for (x1, y1, x2, y2), box_colour in zip(corners, colours, strict=True):
        inset = min(max(image.shape[:2]) // 800, (x2 - x1) // 2, (y2 - y1) // 2)  # the line stays within the box
        cv2.rectangle(image, (x1 + inset, y1 + inset), (x2 - inset, y2 - inset), box_colour, 2 * inset + 1)
    for i in reversed(range(len(corners))):  # after all boxes, whose lines would run through them
        text = names[int(labels[i])] if scores is None else f"{names[int(labels[i])]} {scores[i]:.2f}"
        _write_label(image, text, corners[i][0], corners[i][1], colours[i])
    return image


def _pixels_within(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Convert edges to the first and last pixels (x1, y1, x2, y2) `[n, 4]` of boxes, clipped to the picture."""
    edges = np.rint(np.clip(boxes, 0, [width, height, width, height])).astype(int).reshape(-1, 4)
    first = np.minimum(edges[:, :2], [width - 1, height - 1])
    return np.concatenate([first, np.maximum(edges[:, 2:] - 1, first)], axis=1)


def _write_label(image: np.ndarray, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """Write a label above a box's corner (x, y), or inside the box at the top of the picture."""
    size = max(11, round(max(image.shape[:2]) / 42))  # pixels
    font = cv2.FontFace(FONT)
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), font, size, FONT_WEIGHT)
    height, base = round(1.3 * size), round(0.35 * size)  # independent of the letters in a name
    bottom = y if y >= height else y + height
    left = max(0, min(x, image.shape[1] - width - 2))
    cv2.rectangle(image, (left, bottom - height), (left + width + 1, bottom - 1), colour, cv2.FILLED)
    cv2.putText(image, text, (left + 1, bottom - base), (0, 0, 0), font, size, FONT_WEIGHT)


def scaled_into(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale a photo to fit into `width` × `height` pixels, keeping its aspect ratio; sides are at least 1 pixel."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def contact_sheet(images: Sequence[np.ndarray], columns: int = 4, size: int = 360) -> np.ndarray:
    """Arrange photos of any sizes in a grid of square cells, on grey."""
    rows = -(-len(images) // columns)
    sheet = np.full((rows * size, min(columns, len(images)) * size, 3), 64, np.uint8)
    for i, image in enumerate(images):
        small = scaled_into(image, size - 6, size - 6)
        height, width = small.shape[:2]
        top = i // columns * size + (size - height) // 2
        left = i % columns * size + (size - width) // 2
        sheet[top : top + height, left : left + width] = small
    return sheet


def jpeg(image: np.ndarray) -> str:
    """Return a picture `[H, W, 3]` uint8 RGB as a data URL."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
