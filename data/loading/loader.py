"""Batches: which samples, in which order, decoded and augmented by worker processes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.dataset.images import read_image
from data.dataset.photos import Annotations
from data.loading.image_cache import ImageCache
from data.loading.workers import WatchedLoader, worker_options
from data.transforms.augment import Plan, Switches, draw_plan, plain_plan, reduced_plan
from data.transforms.render import render
from data.transforms.tiles import Windows
from ssd.batch import Batch, pad_targets
from ssd.config.schema import ConfigError
from ssd.system.distributed import World
from ssd.system.machine import num_cores
from ssd.system.stop import StopRequest

Key = tuple[int, int]  # epoch, index


class DetectionDataset(Dataset[Batch]):
    """Photos, and tiles of large ones, as samples. What a sample looks like depends on (seed, epoch, index) alone.

    Args:
        photos: the data set.
        size: pixels a side of the output.
        fill: colour (R, G, B) around expanded photos.
        seed: of the run.
        switches: the augmentation; None for none.
        keep_difficult: keep objects marked difficult as targets.
        cache: decoded windows kept in memory, if any.
        windows: what of the photos the samples show; None for each photo as a whole.
    """

    def __init__(
        self,
        photos: Annotations,
        size: int,
        fill: tuple[int, int, int],
        seed: int = 0,
        switches: Switches | None = None,
        keep_difficult: bool = True,
        cache: ImageCache | None = None,
        windows: Windows | None = None,
    ) -> None:
        self.photos = photos
        self.size = size
        self.fill = fill
        self.seed = seed
        self.switches = switches
        self.keep_difficult = keep_difficult
        self.cache = cache
        self.windows = windows or Windows.whole(photos)
        self.sizes = self.windows.sizes
        self.decoded: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A whole batch at once, written straight into its final buffers."""
        images = torch.empty(len(keys), self.size, self.size, 3, dtype=torch.uint8)
        # All is drawn before the first photo is read: between decoding and resizing, which sweep the processor's caches,
        # drawing takes more than twice the time.
        drawn = [self._draw(epoch, index) for epoch, index in keys]
        for (_, index), (plan, _), out in zip(keys, drawn, images.numpy(), strict=True):
            image = self._pixels(index)
            width, height = self.sizes[index].tolist()
            render(image, reduced_plan(plan, width, height, image), self.fill, out)
        targets = pad_targets([torch.from_numpy(np.column_stack([plan.boxes, labels])).float() for plan, labels in drawn])
        return Batch(images, targets, torch.tensor([index for _, index in keys]))

    def _draw(self, epoch: int, index: int) -> tuple[Plan, np.ndarray]:
        """What one sample is to look like, and the labels `[m]` of its boxes."""
        width, height = self.sizes[index].tolist()
        rows = self.windows.objects(index)
        boxes, labels = self.windows.boxes[rows], self.windows.labels[rows]
        if not self.keep_difficult:
            easy = ~self.windows.difficult[rows]
            boxes, labels = boxes[easy], labels[easy]
        if self.switches is None:
            plan = plain_plan(width, height, boxes)
        else:
            rng = np.random.default_rng((self.seed, epoch, index))
            plan = draw_plan(rng, width, height, boxes, self.switches)
        return plan, labels[plan.kept]

    def path(self, index: int) -> str:
        """The file of the photo that a sample shows."""
        return self.photos.path(self.windows.photos[index])

    def image(self, photo: int) -> np.ndarray:
        """One photo as it is, `[H, W, 3]` uint8 RGB."""
        width, height = self.photos.sizes[photo].tolist()
        return read_image(self.photos.path(photo), (width, height))

    def _pixels(self, index: int) -> np.ndarray:
        """What one sample is made of: from the cache, where a large photo is reduced."""
        if self.cache is None:
            return self._read(index)
        if not self.cache.filled[index]:  # the photo is decoded once for all windows of it
            for each in self.windows.of_photo(int(self.windows.photos[index]), len(self.photos)):
                self.cache.get(each, self._read)
            self.decoded = None
        return self.cache.get(index, self._read)

    def _read(self, index: int) -> np.ndarray:
        """The pixels of a sample's window. Of photos with tiles the last one is kept, for the windows that come next."""
        photo = int(self.windows.photos[index])
        if len(self.windows) == len(self.photos):
            return self.image(photo)
        if self.decoded is None or self.decoded[0] != photo:
            self.decoded = None  # two at once would take twice the memory
            self.decoded = photo, self.image(photo)
        x1, y1, x2, y2 = self.windows.edges[index].tolist()
        return self.decoded[1][y1:y2, x1:x2]


class TrainOrder(Sampler[list[Key]]):
    """The micro-batches of one process, from any iteration on: an endless stream of shuffled epochs, cut into batches.

    A batch may begin in one epoch and end in the next, so every sample is used once an epoch, none is dropped, and a data
    set smaller than a batch works. Batch number i, and its share for each process and accumulation step, depend on the
    seed and i alone.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        iterations: int,
        seed: int,
        first_iteration: int = 0,
        accumulate: int = 1,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self.micro_batch = batch_size // (accumulate * self.world.size)
        if self.micro_batch * accumulate * self.world.size != batch_size:
            raise ConfigError(
                f"train.batch_size {batch_size} cannot be shared out evenly: it must be a multiple of "
                f"train.accumulate {accumulate} × {self.world.size} processes"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.iterations = iterations
        self.seed = seed
        self.first_iteration = first_iteration
        self.accumulate = accumulate

    def __len__(self) -> int:
        return (self.iterations - self.first_iteration) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for iteration in range(self.first_iteration, self.iterations):
            keys = []
            for place in range(iteration * self.batch_size, (iteration + 1) * self.batch_size):
                if place // self.num_samples != epoch:
                    epoch = place // self.num_samples
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)
                keys.append((epoch, int(order[place % self.num_samples])))
            for step in range(self.accumulate):
                start = (step * self.world.size + self.world.rank) * self.micro_batch
                yield keys[start : start + self.micro_batch]


class EvalOrder(Sampler[list[Key]]):
    """The photos in order, each with all its tiles and once, shared out over the processes.

    Args:
        photos: the photo that each sample shows `[m]`, as `data.tiles.Windows` has them.
        batch_size: samples of a batch.
        world: the processes.
    """

    def __init__(self, photos: np.ndarray, batch_size: int, world: World | None = None) -> None:
        world = world or World()
        order = photos.argsort(kind="stable")
        self.indices = order[photos[order] % world.size == world.rank].tolist()
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, i) for i in self.indices[start : start + self.batch_size]]


def choose_workers(workers: int | str, device: torch.device, world: World) -> int:
    """`auto`: one on a CPU, which has its cores busy with the network; otherwise this process's share of the cores."""
    if workers != "auto":
        return int(workers)
    if device.type == "cpu":
        return 1
    return max(1, min(16, num_cores() // world.local_size))


def make_loader(
    samples: DetectionDataset, order: Sampler[list[Key]], workers: int, device: torch.device, stop: StopRequest | None = None
) -> WatchedLoader[Batch]:
    """The loader of `samples` in that order; batches come whole, pinned where the device is a GPU.

    Args:
        samples: the data set.
        order: which samples make up each batch.
        workers: processes that make them; 0: the main one does.
        device: that the batches are for.
        stop: ends a wait for a batch; None where several processes first have to agree.
    """
    loader = DataLoader(samples, batch_sampler=order, pin_memory=device.type == "cuda", **worker_options(workers))
    return WatchedLoader(loader, stop)
