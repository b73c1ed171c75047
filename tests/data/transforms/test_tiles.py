"""Tiles as samples: their objects, compared with a loop over all pairs; reading, caching and distribution."""

from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch

from data.dataset.annotations import Annotations
from data.dataset.crops import LabelledCrops
from data.loading.dataset import DetectionDataset
from data.loading.image_cache import ImageCache, cache_bytes
from data.loading.sampler import EvalSampler
from data.transforms.tiles import cut_tiles
from ssd.config.schema import AugmentConfig, TilesConfig
from ssd.inference.tiles import tile_edges
from ssd.system.distributed import World
from ssd.system.images import DecodedPhoto
from tests.helpers.annotations import blank

FILL = (124, 116, 104)
SIZES = [(700, 300), (90, 80), (250, 1), (100, 100), (101, 100), (333, 512)]


def made_up(seed: int, sizes: list[tuple[int, int]], most: int) -> Annotations:
    """Return photos of these sizes with random objects, without files."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, most, len(sizes))
    parts = []
    for (width, height), count in zip(sizes, counts, strict=True):
        low = rng.uniform(0, 0.95, (count, 2)) * [width, height]
        side = np.exp(rng.uniform(np.log(1), np.log(300), (count, 2)))
        high = np.minimum(low + side, [width, height])
        boxes = np.concatenate([low, high], axis=1)
        parts.append(boxes.round() if min(width, height) > 50 and len(parts) % 2 == 0 else boxes)
    boxes = np.concatenate(parts).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    number = len(boxes)
    return Annotations(
        ("cat", "dog"), np.array([f"{i}.png".encode() for i in range(len(sizes))]), np.array(sizes, np.int32),
        np.concatenate([[0], counts]).cumsum(), boxes, rng.integers(0, 2, number), rng.random(number) < 0.3,
        np.full(number, -1, np.int8), np.arange(len(sizes)), *blank(len(sizes)),
    )  # fmt: skip


@pytest.mark.parametrize("size, overlap, keep", [(100, 0.2, 0.5), (100, 0.01, 1.0), (64, 0.8, 0.3), (150, 0.0, 0.9)])
def test_objects_of_each_tile_by_brute_force(size, overlap, keep):
    photos = made_up(1, SIZES, 60)
    crops = cut_tiles(photos, TilesConfig(size=size, overlap=overlap, keep=keep, background=0.5), seed=0)
    owners, edges = tile_edges(photos.sizes, size, overlap)
    assert crops.photos.tolist() == [*range(len(photos)), *owners.tolist()]
    for i in range(len(photos)):
        assert crops.edges[i].tolist() == [0, 0, *SIZES[i]]
        np.testing.assert_array_equal(crops.boxes[crops.objects(i)], photos.boxes[photos.objects(i)])
    num_objects = 0
    for i, (photo, (x1, y1, x2, y2)) in enumerate(zip(owners, edges.tolist(), strict=True), start=len(photos)):
        expected = []
        rows = photos.objects(photo)
        of_photo = zip(photos.boxes[rows], photos.labels[rows], photos.difficult[rows], strict=True)
        for (left, top, right, bottom), label, difficult in of_photo:
            width, height = (float(high) - float(low) for low, high in ((left, right), (top, bottom)))
            inside = [max(left, x1), max(top, y1), min(right, x2), min(bottom, y2)]
            w, h = max(float(inside[2]) - float(inside[0]), 0), max(float(inside[3]) - float(inside[1]), 0)
            if w * h / (width * height) >= keep:
                expected.append([inside[0] - x1, inside[1] - y1, inside[2] - x1, inside[3] - y1, label, difficult])
        rows = crops.objects(i)
        got = np.column_stack([crops.boxes[rows], crops.labels[rows], crops.difficult[rows]])
        np.testing.assert_allclose(got, np.array(expected, float).reshape(-1, 6), atol=1e-4)
        num_objects += len(expected)
    assert num_objects > 20
    assert len(crops.boxes) == len(photos.boxes) + num_objects


def test_training_uses_a_share_of_the_empty_tiles():
    photos = made_up(2, [(2000, 2000)] * 8, 12)
    crops, again, other = (cut_tiles(photos, TilesConfig(size=100, background=0.2), seed) for seed in (0, 0, 1))
    is_tile, counts = np.arange(len(crops)) >= len(photos), np.diff(crops.starts)
    assert crops.trained[~is_tile].all()
    assert crops.trained[counts > 0].all()
    assert crops.trained[is_tile & (counts == 0)].mean() == pytest.approx(0.2, abs=0.02)
    np.testing.assert_array_equal(crops.trained, again.trained)
    assert (crops.trained != other.trained).any()
    trained = crops.of_training()
    assert trained.trained.all()
    for place, index in enumerate(np.flatnonzero(crops.trained)):
        assert trained.photos[place] == crops.photos[index]
        assert trained.edges[place].tolist() == crops.edges[index].tolist()
        for name in ("boxes", "labels", "difficult"):
            one, other = getattr(trained, name)[trained.objects(place)], getattr(crops, name)[crops.objects(index)]
            np.testing.assert_array_equal(one, other)
    none, every = (cut_tiles(photos, TilesConfig(size=100, background=share), 0).of_training() for share in (0.0, 1.0))
    assert (np.diff(none.starts)[len(photos) :] > 0).all()
    assert len(every) == len(crops)


def test_photos_smaller_than_a_tile_stay_whole():
    photos = made_up(3, [(600, 600), (1, 600), (20, 30)], 9)
    whole, crops = LabelledCrops.whole(photos), cut_tiles(photos, TilesConfig(), 0)
    for field in fields(LabelledCrops):
        np.testing.assert_array_equal(getattr(crops, field.name), getattr(whole, field.name))


@pytest.fixture
def large(tmp_path) -> Annotations:
    """Three photos of noise, two of them large."""
    photos = made_up(4, [(400, 260), (80, 90), (90, 300)], 9)
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(len(photos))]
    for path, (width, height) in zip(paths, photos.sizes.tolist(), strict=True):
        cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return replace(photos, paths=np.array([str(path).encode() for path in paths]))


def tiled(photos: Annotations, cache: ImageCache | None = None, augment: AugmentConfig | None = None) -> DetectionDataset:
    return DetectionDataset(photos, 60, FILL, 1, augment, cache=cache, crops=cut_tiles(photos, TilesConfig(size=100), 0))


def test_a_tiles_sample_has_its_pixels(large):
    samples = tiled(large)
    keys = [(0, index) for index in range(len(samples))]
    batch = samples.__getitems__(keys)
    assert len(samples) > 12
    for index, pixels in enumerate(batch.images.numpy()):
        x1, y1, x2, y2 = samples.crops.edges[index].tolist()
        image = cv2.imread(samples.path(index))
        assert image is not None
        part = cv2.cvtColor(image[y1:y2, x1:x2], cv2.COLOR_BGR2RGB)
        if max(part.shape) > 120:  # a whole photo
            shape = [side if side <= 120 else (side + 2) // 4 for side in part.shape[1::-1]]
            part = cv2.resize(part, shape, interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(pixels, cv2.resize(part, (60, 60), interpolation=cv2.INTER_LINEAR))
        rows = samples.crops.objects(index)
        expected = samples.crops.boxes[rows] / [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
        np.testing.assert_allclose(batch.targets.boxes[index, : len(expected)].numpy(), expected, atol=1e-6)
        assert batch.targets.labels[index, : len(expected)].tolist() == samples.crops.labels[rows].tolist()


def test_a_photo_is_decoded_once_for_all_its_tiles(large, monkeypatch):
    """In any order with a cache, and in the order of evaluation without one."""
    expected = tiled(large, augment=AugmentConfig()).__getitems__([(0, index) for index in range(len(tiled(large)))]).images
    decode, decoded = DetectionDataset._decode, []

    def counted(self: DetectionDataset, photo: int, factor: int) -> DecodedPhoto:
        decoded.append(photo)
        return decode(self, photo, factor)

    monkeypatch.setattr(DetectionDataset, "_decode", counted)
    sizes = tiled(large).crops.sizes
    cached = tiled(large, ImageCache(sizes, 60), AugmentConfig())
    order = np.random.default_rng(0).permutation(len(cached)).tolist()
    images = cached.__getitems__([(0, index) for index in order]).images
    assert torch.equal(images, expected[torch.tensor(order)])
    assert sorted(decoded) == [0, 1, 2]
    assert cached.cache is not None
    assert cached.cache.bytes == cache_bytes(sizes, 60) == int(sizes.astype(int).prod(axis=1).sum()) * 3
    decoded.clear()
    plain = tiled(large)
    for keys in EvalSampler(plain.crops.photos, 3):
        plain.__getitems__(keys)
    assert decoded == [0, 1, 2]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_evaluation_keeps_a_photos_tiles_together(large, processes):
    crops = tiled(large).crops
    orders = [EvalSampler(crops.photos, 4, World(rank, processes)) for rank in range(processes)]
    shares = [[index for keys in order for _, index in keys] for order in orders]
    assert sorted(index for share in shares for index in share) == list(range(len(crops)))
    for rank, share in enumerate(shares):
        owners = crops.photos[share]
        assert (owners % processes == rank).all()
        assert (np.diff(owners) >= 0).all()
        assert len(orders[rank]) == -(-len(share) // 4)
