"""The order of samples: shuffled and endless for training, once in order for evaluation."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ssd.config import ConfigError
from ssd.system.distributed import World

SampleKey = tuple[int, int]  # epoch, index: they seed the augmentation
REPEATED = 2**32  # added to the epoch of a sample each time that it is repeated within one


class TrainSampler(Sampler[list[SampleKey]]):
    """The micro-batches of one process, from any iteration on: an endless stream of shuffled epochs, divided into batches.

    A batch may span two epochs. So every sample is used once per epoch, none is dropped, and a dataset may be smaller than a
    batch. Batch i, and its share for each process and accumulation step, depend only on the seed and i.

    With `weights` `[num_samples]`, an epoch of the same length has each sample as often as its weight says: `num_samples` times
    its share of all weights, rounded up or down by chance. Each time it is augmented anew.

    Raises:
        ConfigError: the batch cannot be divided evenly.
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
        weights: np.ndarray | None = None,
    ) -> None:
        self.world = world or World()
        self.micro_batch = batch_size // (accumulate * self.world.size)
        if self.micro_batch * accumulate * self.world.size != batch_size:
            raise ConfigError(
                f"train.batch_size {batch_size} cannot be divided evenly: it must be a multiple of "
                f"train.accumulate {accumulate} × {self.world.size} processes"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.iterations = iterations
        self.seed = seed
        self.first_iteration = first_iteration
        self.accumulate = accumulate
        self.weights = weights

    def __len__(self) -> int:
        return (self.iterations - self.first_iteration) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, order = -1, list[SampleKey]()
        for iteration in range(self.first_iteration, self.iterations):
            keys = []
            for place in range(iteration * self.batch_size, (iteration + 1) * self.batch_size):
                if place // self.num_samples != epoch:
                    epoch = place // self.num_samples
                    order = self._order(epoch)
                keys.append(order[place % self.num_samples])
            for step in range(self.accumulate):
                start = (step * self.world.size + self.world.rank) * self.micro_batch
                yield keys[start : start + self.micro_batch]

    def _order(self, epoch: int) -> list[SampleKey]:
        """Return the samples of an epoch, in order."""
        rng = np.random.default_rng((self.seed, epoch))
        if self.weights is None:
            return [(epoch, index) for index in rng.permutation(self.num_samples).tolist()]
        ends = np.cumsum(self.weights) * (self.num_samples / self.weights.sum())
        chosen = np.searchsorted(ends, rng.random() + np.arange(self.num_samples), side="right").clip(max=self.num_samples - 1)
        repetition = np.arange(self.num_samples) - np.searchsorted(chosen, chosen)
        order = rng.permutation(self.num_samples)
        return [(epoch + REPEATED * int(repetition[i]), int(chosen[i])) for i in order]


def repeat_factors(starts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how much more often each photo should be seen so that rare classes are seen more (LVIS, appendix B.2).

    A class in a share f of the photos has the factor sqrt(largest f / f), and a photo the largest factor of its classes, at
    least 1.

    Args:
        starts: `[n + 1]`: photo i has the objects starts[i] to starts[i + 1].
        labels: `[N]`.

    Returns:
        `[n]` float64.
    """
    owners = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    factors = np.ones(len(starts) - 1)
    if len(labels):
        pairs = np.unique(np.stack([owners, labels]), axis=1)  # each class once in a photo
        counts = np.bincount(pairs[1])
        np.maximum.at(factors, pairs[0], np.sqrt(counts.max() / counts[pairs[1]]))
    return factors


class EvalSampler(Sampler[list[SampleKey]]):
    """One process's share of the samples, once and in order. All crops of a photo stay together in one process.

    Args:
        photos: the photo of each sample `[m]`, as in `LabelledCrops.photos`.
        batch_size: samples per batch.
        world: the processes.
    """

    def __init__(self, photos: np.ndarray, batch_size: int, world: World | None = None) -> None:
        world = world or World()
        order = photos.argsort(kind="stable")
        self.indices = order[photos[order] % world.size == world.rank].tolist()
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, i) for i in self.indices[start : start + self.batch_size]]
