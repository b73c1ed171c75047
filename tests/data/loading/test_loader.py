from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.dataset.annotations import Annotations
from data.loading.dataset import DetectionDataset
from data.loading.loader import choose_workers, make_loader
from data.loading.sampler import EvalSampler, TrainSampler
from data.shapes import CLASSES
from ssd.config.schema import AugmentConfig, ConfigError
from ssd.system.distributed import World
from tests.helpers.annotations import load

FILL = (124, 116, 104)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(shapes_root) -> Annotations:
    return load(shapes_root / "shapes", "train", CLASSES).photos


def stream(samples: DetectionDataset, order: TrainSampler, workers: int) -> list:
    return list(make_loader(samples, order, workers, CPU))


def test_the_number_of_workers_changes_nothing(photos):
    samples = DetectionDataset(photos, 300, FILL, seed=1, augment=AugmentConfig())
    runs = [stream(samples, TrainSampler(len(photos), 5, 6, seed=1), workers) for workers in (0, 1, 2)]
    for batches in zip(*runs, strict=True):
        for batch in batches[1:]:
            assert torch.equal(batch.images, batches[0].images)
            assert all(torch.equal(a, b) for a, b in zip(batch.targets, batches[0].targets, strict=True))
            assert torch.equal(batch.indices, batches[0].indices)


def test_samples_differ_between_epochs(photos):
    samples = DetectionDataset(photos, 300, FILL, seed=1, augment=AugmentConfig())
    assert not torch.equal(samples[(0, 3)].images, samples[(1, 3)].images)
    assert torch.equal(samples[(1, 3)].images, samples[(1, 3)].images)


def test_batches_are_bytes_and_padded_targets(photos):
    samples = DetectionDataset(photos, 300, FILL)
    batch = samples.__getitems__([(0, i) for i in range(8)])
    assert batch.images.shape == (8, 300, 300, 3)
    assert batch.images.dtype == torch.uint8
    counts = np.diff(photos.starts)[:8]
    assert batch.targets.boxes.shape == (8, counts.max(), 4)
    assert (batch.targets.labels >= 0).sum(dim=1).tolist() == counts.tolist()
    assert torch.equal(batch.targets.objects, (batch.targets.labels.flatten() >= 0).nonzero()[:, 0])
    width, height = photos.sizes[2]
    expected = photos.boxes[photos.objects(2)] / [width, height, width, height]
    np.testing.assert_allclose(batch.targets.boxes[2, : counts[2]].numpy(), expected, atol=1e-6)


def test_difficult_objects_can_be_excluded(photos):
    marked = replace(photos, difficult=np.ones_like(photos.difficult))
    targets = DetectionDataset(marked, 300, FILL, keep_difficult=True)[(0, 1)].targets
    assert len(targets.objects) == len(photos.labels[photos.objects(1)])
    assert len(DetectionDataset(marked, 300, FILL, keep_difficult=False)[(0, 1)].targets.objects) == 0


@pytest.mark.parametrize(("num_photos", "batch_size"), [(10, 4), (3, 8), (7, 7)])
def test_an_epoch_has_every_photo_once(num_photos, batch_size):
    order = TrainSampler(num_photos, batch_size, iterations=30, seed=0)
    keys = [key for batch in order for key in batch]
    assert len(keys) == 30 * batch_size
    for epoch in range(len(keys) // num_photos):
        part = keys[epoch * num_photos : (epoch + 1) * num_photos]
        assert {e for e, _ in part} == {epoch}
        assert sorted(i for _, i in part) == list(range(num_photos))
    assert [i for _, i in keys[:num_photos]] != [i for _, i in keys[num_photos : 2 * num_photos]] or num_photos < 4


def test_a_resumed_stream_continues_exactly():
    whole = list(TrainSampler(10, 4, 20, seed=3))
    assert list(TrainSampler(10, 4, 20, seed=3, first_iteration=13)) == whole[13:]
    assert len(TrainSampler(10, 4, 20, seed=3, first_iteration=13)) == 7


@pytest.mark.parametrize(("accumulate", "processes"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_accumulation_share_the_same_batches(accumulate, processes):
    whole = list(TrainSampler(10, 8, 5, seed=3))
    parts = [list(TrainSampler(10, 8, 5, 3, accumulate=accumulate, world=World(rank, processes))) for rank in range(processes)]
    for i, batch in enumerate(whole):
        together = [
            key for step in range(accumulate) for rank in range(processes) for key in parts[rank][i * accumulate + step]
        ]
        assert together == batch


def test_an_indivisible_batch_is_refused():
    with pytest.raises(ConfigError, match=r"train\.batch_size 8 .* 1 × 3 processes"):
        TrainSampler(10, 8, 5, 3, world=World(0, 3))


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_evaluation_uses_each_photo_once(processes):
    keys = [key for rank in range(processes) for batch in EvalSampler(np.arange(5), 2, World(rank, processes)) for key in batch]
    assert Counter(keys) == Counter({(0, i): 1 for i in range(5)})


def test_automatic_number_of_workers():
    assert choose_workers("auto", CPU, World()) == 1
    assert choose_workers(3, CPU, World()) == 3
    assert 1 <= choose_workers("auto", torch.device("cuda"), World(local_size=4)) <= 16
