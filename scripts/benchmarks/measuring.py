"""Shared by all cases: the setting, alternating measurement, and the table."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from data.dataset.annotations import Annotations
from data.loading.dataset import DetectionDataset
from ssd.architecture import SSD300_VGG16
from ssd.batch import Batch
from ssd.config import Config
from ssd.preprocessing import IMAGENET
from ssd.system.device import keep_freed_memory

OURS, PEER = "ours", "torchvision"
Runs = dict[str, Callable[[], object]]


class Setting(NamedTuple):
    """The setting of all cases."""

    config: Config
    photos: Annotations
    device: torch.device
    dtype: torch.dtype
    rounds: int
    compiled: bool
    profiled: bool
    same_allocator: bool
    arguments: list[str]  # the configuration as command-line arguments


class Row(NamedTuple):
    """One measured variant."""

    case: str
    variant: str
    seconds: float
    rate: float
    unit: str
    ratio: float  # our rate ÷ this variant's
    is_best: bool  # the fastest of several variants of torchvision


def measure(runs: Runs, setting: Setting, rounds: int | None = None) -> dict[str, float]:
    """Return the median seconds of each variant. They alternate, every other round in reverse; the first round warms up."""
    rounds = rounds or setting.rounds
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    kept = None
    for number in range(rounds + 1):
        for name in list(runs) if number % 2 else reversed(runs):
            keep = setting.same_allocator or not name.startswith(PEER)
            if keep != kept:
                keep_freed_memory(keep)
                runs[name]()  # not timed: it may free the other allocator's memory
                kept = keep
            start = time.perf_counter()
            runs[name]()
            if setting.device.type == "cuda":
                torch.cuda.synchronize(setting.device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rows(case: str, amount: int, unit: str, seconds: dict[str, float]) -> list[Row]:
    """Return a row for each variant. If torchvision has several, mark its fastest."""
    peers = [name for name in seconds if name.startswith(PEER)]
    best = min(peers, key=seconds.__getitem__) if len(peers) > 1 else None
    return [
        Row(case, name, value, amount / value, unit, value / seconds[OURS], name == best) for name, value in seconds.items()
    ]


def real_batch(photos: Annotations, batch_size: int, input_size: int = SSD300_VGG16.input_size) -> Batch:
    """Return a batch of photos without augmentation, always the same."""
    samples = DetectionDataset(photos, input_size, IMAGENET.fill)
    return samples.__getitems__([(0, i % len(photos)) for i in range(batch_size)])
