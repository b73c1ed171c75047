import cv2
import numpy as np
import pytest
import torch

from data.dataset.annotations import Annotations
from data.loading import image_cache
from data.loading.dataset import DetectionDataset
from data.loading.image_cache import ImageCache, cache_bytes, cached_sizes, fits, reductions
from data.loading.loader import make_loader
from data.loading.sampler import EvalSampler
from data.shapes import CLASSES
from data.transforms.augment import CROP_ASPECT, CROP_SCALE
from ssd.config.schema import AugmentConfig
from tests.helpers.annotations import blank, load

FILL = (124, 116, 104)
SIZES = np.array([[640, 480], [1500, 1415], [2830, 2829], [4000, 3000], [2830, 9001], [4245, 4245]], np.int32)


@pytest.fixture(scope="module")
def photos(shapes_root) -> Annotations:
    return load(shapes_root / "shapes", "train", CLASSES).photos


def test_the_cache_gives_the_same_samples_and_reads_each_photo_once(photos, monkeypatch):
    cache = ImageCache(photos.sizes, 300)
    plain, cached = (DetectionDataset(photos, 300, FILL, 1, AugmentConfig(), cache=each) for each in (None, cache))
    keys = [(0, index) for index in range(4)]
    expected = plain.__getitems__(keys).images
    assert torch.equal(cached.__getitems__(keys).images, expected)
    assert cache.filled.sum() == 4
    monkeypatch.setattr("data.loading.dataset.read_image", None)
    assert torch.equal(cached.__getitems__(keys).images, expected)


def test_workers_fill_one_cache_together(photos):
    cache = ImageCache(photos.sizes, 300)
    samples = DetectionDataset(photos, 300, FILL, cache=cache)
    list(make_loader(samples, EvalSampler(np.arange(len(photos)), 4), 2, torch.device("cpu")))
    assert cache.filled.all()


def test_a_photo_is_reduced_until_its_narrowest_crop_fits_the_input():
    factors = reductions(SIZES, 300)
    assert factors.tolist() == [1, 1, 1, 2, 2, 3]
    kept = cached_sizes(SIZES, 300)
    assert kept.tolist() == [[640, 480], [1500, 1415], [2830, 2829], [2000, 1500], [1415, 4501], [1415, 1415]]
    narrowest = CROP_SCALE[0] * np.sqrt(CROP_ASPECT[0])
    assert (kept.min(axis=1)[factors > 1] * narrowest >= 300).all()
    assert cache_bytes(SIZES, 300) == 3 * sum(width * height for width, height in kept.tolist())
    assert ImageCache(SIZES[:1], 300).bytes == 640 * 480 * 3


@pytest.fixture
def large(tmp_path) -> Annotations:
    """One photo of 12 megapixels, smooth enough to be resampled, with a small object."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.resize(noise, (4000, 3001), interpolation=cv2.INTER_CUBIC))
    path = np.array([str(tmp_path / "a.png").encode()])
    boxes = np.array([[1900, 1400, 2150, 1650]], np.float32)
    return Annotations(
        ("cat",), path, np.array([[4000, 3001]], np.int32), np.array([0, 1]), boxes, np.zeros(1, np.int64), np.zeros(1, bool),
        np.zeros(1, np.int8), np.zeros(1, np.int64), *blank(1),
    )  # fmt: skip


def test_a_reduced_photo_changes_samples_only_by_interpolation(large):
    cache = ImageCache(large.sizes, 300)
    assert cache.sizes.tolist() == [[2000, 1501]]
    options = AugmentConfig(photometric=False)
    plain, cached = (DetectionDataset(large, 300, FILL, 1, options, cache=each) for each in (None, cache))
    keys = [(epoch, 0) for epoch in range(12)]
    one, other = plain.__getitems__(keys), cached.__getitems__(keys)
    assert all(torch.equal(a, b) for a, b in zip(one.targets, other.targets, strict=True))
    difference = (one.images.float() - other.images.float()).abs().flatten(1)
    assert difference.mean(dim=1).max() < 3
    assert cached.image(0).shape == (3001, 4000, 3)  # pictures show the full photo


def test_the_caches_of_all_processes_must_fit_into_free_memory(monkeypatch):
    monkeypatch.setattr(image_cache, "free_memory", lambda: 1000)
    assert [fits(800), fits(801), fits(400, 2), fits(401, 2)] == [True, False, True, False]
