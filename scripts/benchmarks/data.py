"""Benchmark of loading: from files on disk to batches."""

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from data.dataset.annotations import Annotations
from data.loading.dataset import DetectionDataset
from data.loading.loader import choose_workers, make_loader
from data.loading.sampler import TrainSampler
from scripts.benchmarks.measuring import OURS, PEER, Row, Runs, Setting, measure, rows
from ssd.architecture import SSD300_VGG16
from ssd.config.schema import AugmentConfig
from ssd.preprocessing import IMAGENET
from ssd.system.distributed import World


def bench_data(setting: Setting, batch_size: int) -> list[Row]:
    """Measure one process, from files on disk to augmented uint8 batches. Floor: decoding and one resize."""
    photos, size = setting.photos, SSD300_VGG16.input_size
    indices = np.random.default_rng(0).permutation(len(photos))[: 8 * batch_size].tolist()
    samples = DetectionDataset(photos, size, IMAGENET.fill, augment=AugmentConfig())

    def ours() -> None:
        for start in range(0, len(indices), batch_size):
            samples.__getitems__([(0, i) for i in indices[start : start + batch_size]])

    def floor() -> None:
        for i in indices:
            image = cv2.imread(photos.path(i))
            assert image is not None
            cv2.resize(image, (size, size))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker
    runs: Runs = {
        OURS: ours,
        f"{PEER} v2, SSD preset": lambda: torchvision_samples(photos, indices, size),
        "floor: imread and one resize": floor,
    }
    seconds = measure(runs, setting)
    torch.set_num_threads(threads)
    return rows("data", len(indices), "samples/s", seconds)


def bench_loader(setting: Setting, batch_size: int) -> list[Row]:
    """Measure an epoch from as many loader processes as a GPU gets, on this machine's cores, up to the device. Floor: the same
    samples in the main process, divided by the number of processes."""
    photos, device = setting.photos, setting.device
    samples = DetectionDataset(photos, SSD300_VGG16.input_size, IMAGENET.fill, augment=AugmentConfig())
    workers = choose_workers("auto", torch.device("cuda"), World())
    iterations = max(2 * workers, len(photos) // batch_size)
    order = TrainSampler(len(photos), batch_size, iterations, setting.config.seed)
    alone = list(order)[: iterations // workers]
    loader = make_loader(samples, order, workers, device)

    def ours() -> None:
        for batch in loader:
            batch.images.to(device, non_blocking=True)

    def one_process() -> None:
        for keys in alone:
            samples.__getitems__(keys)

    floor = f"floor: one process, divided by {workers}"
    seconds = measure({OURS: ours, floor: one_process}, setting)
    seconds[floor] *= iterations / len(alone) / workers
    return rows(f"loader, {workers} processes, batch {batch_size}", iterations * batch_size, "samples/s", seconds)


def torchvision_samples(photos: Annotations, indices: list[int], size: int) -> None:
    """Apply the SSD preset of torchvision's training reference, and the resize that its model does."""
    preset = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill={tv_tensors.Image: IMAGENET.fill, "others": 0}),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.Resize((size, size)),
            v2.ToDtype(torch.float32, scale=True),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    for i in indices:
        image, rows = Image.open(photos.path(i)).convert("RGB"), photos.objects(i)
        corners = torch.from_numpy(photos.boxes[rows])
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(image.height, image.width))  # pyright: ignore[reportCallIssue]
        preset(image, {"boxes": boxes, "labels": torch.from_numpy(photos.labels[rows])})
