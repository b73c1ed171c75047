"""Photos that look alike, and photos that do not."""

import cv2
import numpy as np
import pytest

from data.dataset import similar
from data.dataset.similar import ALIKE, SIDE, find_alike, similarities, thumbnail
from ssd.system.images import read_photo
from tests.helpers.paths import ROOT

PHOTOS = [read_photo(path) for path in sorted((ROOT / "tests/photos").glob("*.jpg"))]


def encoded(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


EDITS = {
    "encoded again": lambda image: encoded(image, 30),
    "scaled": lambda image: cv2.resize(image, (150, 110), interpolation=cv2.INTER_AREA),
    "brighter": lambda image: np.clip(image * 1.2 + 10, 0, 255).astype(np.uint8),
    "darker": lambda image: (image * 0.6).astype(np.uint8),
    "noise": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 10, image.shape), 0, 255).astype(np.uint8),
    "grey": lambda image: np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "cropped": lambda image: image[3:-3, 3:-3],
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_look_alike(edit):
    copies = np.stack([thumbnail(np.ascontiguousarray(EDITS[edit](image))) for image in PHOTOS])
    found = list(find_alike(np.stack([thumbnail(image) for image in PHOTOS]), copies))
    assert [(alike.photo, alike.others.tolist()) for alike in found] == [(i, [i]) for i in range(len(PHOTOS))]
    assert all(alike.similarity[0] >= ALIKE for alike in found)


def test_blank_photos_are_like_no_other():
    blank = np.zeros((3, SIDE, SIDE), np.uint8)
    blank[1] = 200
    blank[2] = np.arange(SIDE)  # a gradient, such as a clear sky
    assert list(find_alike(blank)) == []
    assert similarities(blank, blank).tolist() == [0, 0, 0]


def test_pairs_are_found_once_and_across_chunks(monkeypatch):
    monkeypatch.setattr("data.dataset.similar.MAX_PAIRS", 20)
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (10, SIDE, SIDE), dtype=np.uint8)
    photos[[4, 8]] = photos[1]
    assert [(alike.photo, alike.others.tolist()) for alike in find_alike(photos)] == [(1, [4, 8]), (4, [8])]
    assert list(find_alike(photos[:0])) == []


def test_real_neighbours_are_found(shared_data):
    """Checked by eye: these pairs of BCCD and of the raccoons show the same scene, and no other pair does."""
    pairs = {}
    for folder in ("bccd/JPEGImages", "raccoon/images"):
        paths = sorted((shared_data / folder).glob("*.jpg"))
        found = find_alike(np.stack([thumbnail(read_photo(path)) for path in paths]))
        pairs[folder] = {(paths[each.photo].stem, paths[other].stem) for each in found for other in each.others}
    assert pairs["bccd/JPEGImages"] == {("BloodImage_00037", "BloodImage_00038")}
    names = {tuple(sorted(int(name.split("-")[1]) for name in pair)) for pair in pairs["raccoon/images"]}
    assert names == {(65, 98), (11, 116), (52, 74), (50, 52), (50, 74), (83, 120), (21, 45), (51, 85)}


@pytest.mark.parametrize("max_pairs", [1, 50, 10_000])
def test_each_pair_is_found_once_whatever_is_compared_at_a_time(monkeypatch, max_pairs):
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (5, SIDE, SIDE))
    copies = np.clip(np.concatenate([scenes, scenes[:, :, ::-1], scenes]) + rng.normal(0, 20, (15, SIDE, SIDE)), 0, 255)
    monkeypatch.setattr(similar, "MAX_PAIRS", max_pairs)
    found = [(alike.photo, other) for alike in find_alike(copies.astype(np.uint8)) for other in alike.others.tolist()]
    assert sorted(found) == [(i, j) for i in range(15) for j in range(i + 1, 15) if i % 5 == j % 5]
