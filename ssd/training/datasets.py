"""The data of a run: the photos of data.train and data.val, their datasets and their loaders."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler
from tqdm import tqdm

from data.dataset.annotation_loader import LoadedAnnotations, Part, load_annotations
from data.dataset.annotations import Annotations, shared_warning
from data.dataset.crops import LabelledCrops
from data.dataset.entry import prefix_note
from data.dataset.errors import DataError
from data.dataset.source_cache import FolderDigest
from data.loading.dataset import DetectionDataset
from data.loading.image_cache import ImageCache, cache_bytes, fits
from data.loading.loader import WatchedLoader, choose_workers, make_loader
from data.loading.sampler import EvalSampler, SampleKey, TrainSampler, repeat_factors
from data.loading.workers import num_caches
from data.transforms.tiles import cut_tiles
from ssd.batch import Batch
from ssd.config import Config
from ssd.inference.pictures import evenly_spaced
from ssd.preprocessing import IMAGENET, Preprocessing
from ssd.system.files import write_whole
from ssd.system.machine import num_cores
from ssd.system.memory import USED, free_memory
from ssd.system.stop import Stopped, StopRequest, strongest
from ssd.training.run import Run

MAX_FAULTS = 50  # lines in one error message


class Data(NamedTuple):
    """The photos of a run."""

    train: Annotations
    val: Annotations
    damaged: list[str]  # why photos of either were left out, a line for each fault


def load_data(run: Run, max_faults: int | None = MAX_FAULTS) -> Data:
    """Load the training and validation photos.

    Raises:
        DataError: with the first `max_faults` faults in both, or all of them.
    """
    loaded = _load(run, ("train", "val"), max_faults)
    train, val = loaded["train"].photos, loaded["val"].photos
    for name in train.absent_classes():
        run.say(f"warning: data.train has no object of class {name!r}; it cannot be learned")
    for warning in shared_warning(train, val):
        run.say(warning)
    return Data(train, val, left_out(loaded.values()))


def load_part(run: Run, part: Part) -> Annotations:
    """Load the photos of one part.

    Raises:
        DataError: with the first faults in them.
    """
    return _load(run, (part,), MAX_FAULTS)[part].photos


def _load(run: Run, parts: tuple[Part, ...], max_faults: int | None) -> dict[str, LoadedAnnotations]:
    faults: list[str] = []
    loaded: dict[str, LoadedAnnotations] = {}
    digests: dict[Path, FolderDigest] = {}

    def load() -> None:
        with suppress(Stopped):  # _settle passes it on to the other processes
            for part in parts:
                try:
                    loaded[part] = _load_part(run, part, digests)
                except DataError as error:
                    faults.extend(str(error).splitlines())

    for is_mains_turn in (True, False):  # the main process fills the cache, which the others then read
        if run.world.is_main == is_mains_turn:
            load()
        _settle(run, faults, max_faults)
    _require_same_photos(run, loaded)
    for part, result in loaded.items():
        result.photos.require_objects(f"data.{part}", with_difficult=part == "train" and run.config.data.keep_difficult)
        for note in result.notes:
            run.say(prefix_note(f"data.{part}", note))
    return loaded


def _load_part(run: Run, part: Part, digests: dict[Path, FolderDigest]) -> LoadedAnnotations:
    """Load data.train or data.val and look at every photo, with a progress bar on a terminal."""
    data, processes = run.config.data, max(1, num_cores() // run.world.local_size)
    with tqdm(desc=f"reading data.{part}", unit="photo", disable=None if run.world.is_main else True, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if run.stop():
                raise Stopped(run.stop.signal)

        workers = processes if data.workers == "auto" else min(processes, data.workers)
        return load_annotations(data, part, run.config.seed, workers, progress, digests)


def _settle(run: Run, faults: list[str], max_faults: int | None) -> None:
    """End all processes together if one was asked to stop or found a fault.

    A process may take hours to look at a large data set; the others wait as long as it lives.
    """
    shares = run.world.all_gather((run.stop.signal, list(dict.fromkeys(faults))), patient=True)  # without repeated folders
    run.stop.signal = strongest(number for number, _ in shares)
    if run.stop():
        raise Stopped(run.stop.signal)
    first_rank = {line: rank for rank, (_, lines) in reversed(list(enumerate(shares))) for line in lines}
    lines = [f"process {rank}: {line}" if rank else line for line, rank in sorted(first_rank.items(), key=lambda item: item[1])]
    if lines:
        raise DataError("\n".join(first_faults(lines, max_faults, "; scripts/check_data.py lists them all")))


def _require_same_photos(run: Run, loaded: dict[str, LoadedAnnotations]) -> None:
    """Check that every process has the same photos, because batches are divided by photo number.

    Raises:
        DataError: they differ, for example because a photo is damaged or an annotation is older on one machine.
    """
    remedy = "give all machines the same files"
    every = run.world.all_gather([(len(part.photos), part.num_damaged) for part in loaded.values()])
    for rank, theirs in enumerate(every):
        if theirs != every[0]:
            counts, ours = (" and ".join(str(count) for count, _ in each) for each in (theirs, every[0]))
            raise DataError(f"process {rank} can read {counts} photos, process 0 {ours}; {remedy}")
    for name, part in loaded.items() if run.world.size > 1 else ():
        digests = run.world.all_gather(part.photos.digest())
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise DataError(
                    f"data.{name}: process {rank} has different photos or annotations ({digest}) than process 0 "
                    f"({digests[0]}), though the same number; {remedy}"
                )


def left_out(loaded: Iterable[LoadedAnnotations]) -> list[str]:
    """List why photos were left out, a line for each fault; faults in a folder that both parts use appear once."""
    return list(dict.fromkeys(line for part in loaded for line in part.damaged))


def first_faults(lines: list[str], max_faults: int | None, hint: str = "") -> list[str]:
    """Return the first faults, and a line with the number of others."""
    more = len(lines) - len(lines[:max_faults])
    return [*lines[:max_faults], *([f"... and {more} more faults{hint}"] if more else [])]


def list_damaged(run: Run, lines: list[str]) -> None:
    """Write the faults that `data.damaged: skip` left out to damaged.txt; remove the file if there are none."""
    path = run.folder / "damaged.txt"
    if run.world.is_main and lines:
        write_whole(path, lambda file: file.write(os.fsencode("\n".join([*lines, ""]))))
    elif run.world.is_main:
        path.unlink(missing_ok=True)


def sample_pixels(run: Run, photos: Annotations, count: int) -> Tensor:
    """Return up to `count` photos from across a data set at the network's size, `[N, S, S, 3]` uint8 RGB, for pruning."""
    samples = eval_dataset(run, photos, IMAGENET)
    return samples.__getitems__([(0, index) for index in evenly_spaced(len(photos), count)]).images


def train_dataset(run: Run, photos: Annotations, preprocessing: Preprocessing) -> DetectionDataset:
    """Return augmented samples of the photos, and of tiles of large ones."""
    config = run.config
    crops, size = make_crops(photos, config).of_training(), config.model.row.input_size
    return DetectionDataset(
        photos, size, preprocessing.fill, config.seed, config.augment,
        config.data.keep_difficult, _image_cache(run, crops, size), crops,
    )  # fmt: skip


def eval_dataset(run: Run, photos: Annotations, preprocessing: Preprocessing) -> DetectionDataset:
    """Return samples of the photos without augmentation, and of all tiles of large ones; targets are those of training."""
    keep_difficult, crops = run.config.data.keep_difficult, make_crops(photos, run.config)
    size = run.config.model.row.input_size
    return DetectionDataset(photos, size, preprocessing.fill, keep_difficult=keep_difficult, crops=crops)


def make_crops(photos: Annotations, config: Config) -> LabelledCrops:
    """Return all photos, whole, and with `data.tiles` the tiles of large ones."""
    return cut_tiles(photos, config.data.tiles, config.seed) if config.data.tiles else LabelledCrops.whole(photos)


def _image_cache(run: Run, crops: LabelledCrops, output: int) -> ImageCache | None:
    """Return the cache of decoded photos and tiles, if the configuration wants one and it fits into memory."""
    if run.config.data.cache == "none":
        return None
    size, count = cache_bytes(crops.sizes, output), cache_copies(run) * run.world.local_size
    if all(run.world.all_gather(fits(size, count))):
        return ImageCache(crops.sizes, output)
    copies = f" for each of {count} processes" if count > 1 else ""
    run.say(
        f"warning: data.cache: ram needs {size / 2**30:.1f} GiB{copies}, more than {USED:.0%} of the "
        f"{free_memory() / 2**30:.1f} GiB of free memory; continuing without the cache"
    )
    return None


def cache_copies(run: Run) -> int:
    """Return how many image caches this process and its workers fill."""
    return num_caches(choose_workers(run.config.data.workers, run.device, run.world))


def tiles_notes(config: Config, train_set: DetectionDataset, val_set: DetectionDataset) -> list[str]:
    """Describe a run's tiles, in a line or two."""
    if not config.data.tiles:
        return []
    size = config.data.tiles.size
    num_train, num_val = (len(each.crops) - len(each.photos) for each in (train_set, val_set))
    if not num_train + num_val:
        return [f"warning: data.tiles.size {size}: no photo is larger, so there are no tiles"]
    num_empty = int((np.diff(train_set.crops.starts)[len(train_set.photos) :] == 0).sum())
    lines = [f"tiles of {size} pixels: {num_train} to train on, {num_empty} of them without objects; {num_val} to evaluate on"]
    if num_empty and not config.loss.min_neg and not config.train.teacher:
        lines.append("warning: loss.min_neg 0: tiles without objects teach nothing; set it to 3, or data.tiles.background to 0")
    return lines


def train_loader(run: Run, samples: DetectionDataset, iterations: int, first_iteration: int) -> WatchedLoader[Batch]:
    """Return the loader of this process's micro-batches, starting at an iteration.

    Raises:
        ConfigError: the batch cannot be divided evenly.
    """
    accumulate, seed = run.config.train.accumulate, run.config.seed
    weights = repeat_factors(samples.crops.starts, samples.crops.labels) if run.config.data.sampling == "balanced" else None
    order = TrainSampler(len(samples), run.batch_size, iterations, seed, first_iteration, accumulate, run.world, weights)
    # Several processes agree on a stop after a step: none may leave a step that the others are in.
    return _loader(run, samples, order, run.stop if run.world.size == 1 else None)


def val_loader(run: Run, samples: DetectionDataset) -> WatchedLoader[Batch]:
    """Return the loader of this process's share of the photos, in order, each with all its tiles."""
    return _loader(run, samples, EvalSampler(samples.crops.photos, run.config.eval.batch_size, run.world), run.stop)


def _loader(
    run: Run, samples: DetectionDataset, order: Sampler[list[SampleKey]], stop: StopRequest | None
) -> WatchedLoader[Batch]:
    return make_loader(samples, order, choose_workers(run.config.data.workers, run.device, run.world), run.device, stop)


def fullest_batch(samples: DetectionDataset, count: int) -> Batch:
    """Return the `count` samples with the most objects, which need the most memory; they repeat if there are fewer."""
    order = np.argsort(-np.diff(samples.crops.starts), kind="stable")
    return samples.__getitems__([(0, int(index)) for index in np.resize(order, count)])
