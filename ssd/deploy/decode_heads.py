"""Photos to the input of a raw network file, and its outputs to boxes in pixels. Needs only NumPy and the JSON file.

settings = decode_heads.load("best.raw.json")
images = decode_heads.prepare([photo], settings)  # photo: [H, W, 3] uint8 RGB
loc, conf = ...                                   # run the network on images
boxes, labels, scores = decode_heads.decode(loc[0], conf[0], photo.shape, settings)
names = [settings["classes"][label] for label in labels]
"""

import json
from typing import Any

import numpy as np


def load(path: str) -> dict[str, Any]:
    """Return the settings in a JSON file, with the DBoxes as an array `[P, 4]` float32."""
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    return {**settings, "dboxes": np.array(settings["dboxes"], np.float32)}


def prepare(photos: list[np.ndarray], settings: dict[str, Any]) -> np.ndarray:
    """Return the network's input `[N, 3, S, S]` for at most N photos, each `[H, W, 3]` uint8 RGB; unused places are 0."""
    entry = settings["input"]
    number, _, side, _ = entry["shape"]
    if len(photos) > number:
        raise ValueError(f"expected at most {number} photos, the batch of the file, got {len(photos)}")
    images = np.zeros(entry["shape"], np.float32)
    for place, photo in enumerate(photos):
        pixels = resize(shrink(photo, side), side)
        images[place] = (pixels if entry["channel_order"] == "rgb" else pixels[..., ::-1]).transpose(2, 0, 1)
    if entry["normalise_before"]:
        mean, scale = (np.array(entry[name], np.float32)[:, None, None] for name in ("mean", "scale"))
        images[: len(photos)] = (images[: len(photos)] - mean) * scale
    return images.astype(entry["dtype"])


def shrink(photo: np.ndarray, side: int) -> np.ndarray:
    """Average the pixels of a photo in each direction that has more than twice `side`, as cv2.INTER_AREA does."""
    factors = [_reduction(length, side) for length in photo.shape[:2]]
    if factors == [1, 1]:
        return photo
    averaged = _average(_average(photo, factors[0]).swapaxes(0, 1), factors[1]).swapaxes(0, 1)
    # Halves are rounded to even, but up if exactly 2 × 2 pixels are averaged: OpenCV has a shortcut for these.
    is_shortcut = factors == [2, 2] and not any(length % 2 for length in photo.shape[:2])
    return np.rint(averaged + 0.125 * is_shortcut).astype(np.uint8)


def _reduction(length: int, side: int) -> int:
    """Return the smallest power of two that leaves at most twice `side`."""
    factor = 1
    while length > 2 * factor * side:
        factor *= 2
    return factor


def _average(photo: np.ndarray, factor: int) -> np.ndarray:
    """Reduce rows by a factor; each new one is the mean of those it replaces, by their share."""
    length = len(photo)
    count = (length + factor // 2) // factor
    new, averaged = np.arange(count), np.zeros((count, *photo.shape[1:]), np.float32)
    for tap in range(factor + 2):  # rows that a new one may touch
        old = new * length // count + tap
        covered = np.minimum((new + 1) * length, (old + 1) * count) - np.maximum(new * length, old * count)
        weights = (covered.clip(0) / length).astype(np.float32)
        averaged += weights[:, None, None] * photo[old.clip(max=length - 1)]
    return averaged


def resize(photo: np.ndarray, side: int) -> np.ndarray:
    """Resize a photo to `side` × `side` pixels by linear interpolation, with the same result as cv2.resize."""
    (top, bottom, above, below), (left, right, before, after) = (_neighbours(length, side) for length in photo.shape[:2])
    rows = photo[np.concatenate([top, bottom])].astype(np.int32)
    across = (rows[:, left] * before[:, None] + rows[:, right] * after[:, None]) >> 4
    upper, lower = np.split(across, 2)
    mixed = (upper * above[:, None, None] >> 16) + (lower * below[:, None, None] >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8)


def _neighbours(length: int, side: int) -> tuple[np.ndarray, ...]:
    """Return the two pixels of a row that each new pixel lies between, and their weights, which sum to 2048."""
    place = ((2 * np.arange(side) + 1) * length / (2 * side) - 0.5).astype(np.float32)
    first = np.floor(place)
    part = place - first
    low, high = (np.clip(first + step, 0, length - 1).astype(int) for step in (0, 1))
    return low, high, np.rint((1 - part) * 2048).astype(np.int32), np.rint(part * 2048).astype(np.int32)


def decode(
    loc: np.ndarray, conf: np.ndarray, shape: tuple[int, ...], settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the detections in one photo, by falling score.

    Args:
        loc: offsets `[P, 4]` of one photo from the network.
        conf: scores or logits `[P, C]` of that photo, column 0 = background.
        shape: of the photo: height and width first.
        settings: the JSON file's.

    Returns:
        boxes `[n, 4]`, edges (x1, y1, x2, y2) in the photo's pixels; labels `[n]`, places in `classes`; scores `[n]`.
    """
    loc, conf, dboxes = (np.asarray(values, np.float32) for values in (loc, conf, settings["dboxes"]))
    limits = settings["postprocess"]
    least = np.array([limits["score_thresh"][name] for name in settings["classes"]], np.float32)
    if settings["outputs"]["conf"]["kind"] == "logits":
        with np.errstate(invalid="ignore"):  # infinite logits give NaN, which counts as no score
            powers = np.exp(conf - conf.max(axis=1, keepdims=True))
        conf = powers / powers.sum(axis=1, keepdims=True)
    is_valid = np.isfinite(loc).all(axis=1) & np.isfinite(conf).all(axis=1)
    labels, boxes = [], []
    for label in range(conf.shape[1] - 1):
        scores = conf[:, label + 1]
        passing = np.flatnonzero(is_valid & (scores > least.min()))
        passing = passing[np.argsort(-scores[passing], kind="stable")][: limits["pre_nms_top_k"]]
        kept = passing[suppress(corners(loc[passing], dboxes[passing], settings["variances"]), limits["nms_thresh"])]
        labels.append(np.full(len(kept), label))
        boxes.append(kept)
    labels, boxes = np.concatenate(labels), np.concatenate(boxes)
    order = np.argsort(-conf[boxes, labels + 1], kind="stable")[: limits["top_k"]]
    order = order[conf[boxes[order], labels[order] + 1] >= least[labels[order]]]
    labels, boxes = labels[order], boxes[order]
    size = np.array([shape[1], shape[0]] * 2, np.float32)
    return corners(loc[boxes], dboxes[boxes], settings["variances"]) * size, labels, conf[boxes, labels + 1]


def corners(loc: np.ndarray, dboxes: np.ndarray, variances: list[float]) -> np.ndarray:
    """Return the boxes (x1, y1, x2, y2) `[n, 4]`, relative to the photo and clipped to it, at offsets from DBoxes."""
    with np.errstate(over="ignore"):  # a huge box is clipped
        center = dboxes[:, :2] + loc[:, :2] * np.float32(variances[0]) * dboxes[:, 2:]
        size = dboxes[:, 2:] * np.exp(loc[:, 2:] * np.float32(variances[1]))
    return np.concatenate([center - size / 2, center + size / 2], axis=1).clip(0, 1)


def suppress(boxes: np.ndarray, most: float) -> np.ndarray:
    """Return which boxes `[n, 4]`, by falling score, remain when those that overlap a remaining one by more than `most` go."""
    boxes = boxes.astype(np.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept, rest = [], np.arange(len(boxes))
    while len(rest):
        first, rest = rest[0], rest[1:]
        kept.append(first)
        sides = np.minimum(boxes[first, 2:], boxes[rest, 2:]) - np.maximum(boxes[first, :2], boxes[rest, :2])
        common = sides.clip(0).prod(axis=1)
        with np.errstate(invalid="ignore"):  # two boxes without area do not overlap
            rest = rest[~(common / (areas[first] + areas[rest] - common) > most)]
    return np.array(kept, int)
