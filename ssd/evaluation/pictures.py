"""Pictures of photos with boxes."""

from collections.abc import Sequence

import cv2
import numpy as np

TRUTH = (255, 255, 255)  # colour of ground truth, RGB


def class_colour(label: int) -> tuple[int, int, int]:
    """A bright colour (R, G, B) that tells a class from its neighbours: hues a golden angle apart."""
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
    """A copy of a photo with labelled boxes.

    Args:
        image: `[H, W, 3]` uint8, RGB.
        boxes: `[n, 4]` corners in its pixels, counted from 0; where labels meet, the first box's is on top.
        labels: `[n]`, from 0 over `names`.
        names: of the classes.
        scores: `[n]`, written beside the names.
        colour: of all boxes; by default each class has its own.
    """
    image = image.copy()
    thickness = max(1, round(max(image.shape[:2]) / 300))
    font_scale = max(0.35, max(image.shape[:2]) / 1200)
    corners = np.rint(boxes).astype(int).reshape(-1, 4).tolist()
    colours = [colour or class_colour(int(label)) for label in labels]
    for (x1, y1, x2, y2), box_colour in zip(corners, colours, strict=True):
        cv2.rectangle(image, (x1, y1), (x2, y2), box_colour, thickness)
    for i in reversed(range(len(corners))):  # after all boxes, whose lines would run through them
        x1, y1, box_colour, name = *corners[i][:2], colours[i], names[int(labels[i])]
        text = name if scores is None else f"{name} {scores[i]:.2f}"
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font_scale, 1)
        top = y1 if y1 >= height + base else y1 + height + base
        left = max(0, min(x1, image.shape[1] - width))
        cv2.rectangle(image, (left, top - height - base), (left + width, top), box_colour, cv2.FILLED)
        cv2.putText(image, text, (left, top - base // 2), cv2.FONT_HERSHEY_SIMPLEX, font_scale, (0, 0, 0), 1, cv2.LINE_AA)
    return image


def contact_sheet(images: Sequence[np.ndarray], columns: int = 4, size: int = 360) -> np.ndarray:
    """Photos of any sizes in a grid of square cells, on grey."""
    rows = -(-len(images) // columns)
    sheet = np.full((rows * size, min(columns, len(images)) * size, 3), 64, np.uint8)
    for i, image in enumerate(images):
        scale = min((size - 6) / image.shape[0], (size - 6) / image.shape[1])
        width, height = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top = i // columns * size + (size - height) // 2
        left = i % columns * size + (size - width) // 2
        sheet[top : top + height, left : left + width] = small
    return sheet
