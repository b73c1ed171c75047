"""The data of a run: the photos of data.train and data.val, and the samples that are made of them."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler
from tqdm import tqdm

from data.dataset.annotation import DataError
from data.dataset.listing import attributed
from data.dataset.photos import Annotations, Loaded, load_photos, shared_warning
from data.dataset.source_cache import FolderDigest
from data.loading.image_cache import ImageCache, cache_bytes, fits
from data.loading.loader import DetectionDataset, EvalOrder, Key, TrainOrder, choose_workers, make_loader
from data.loading.workers import WatchedLoader, num_caches
from data.transforms.augment import Switches
from data.transforms.tiles import Windows, cut
from ssd.batch import Batch
from ssd.config.schema import Config
from ssd.preprocessing import Preprocessing
from ssd.system.machine import num_cores
from ssd.system.memory import USED, free_memory
from ssd.system.stop import Stopped, StopRequest, strongest
from ssd.training.run import Run

MAX_FAULTS = 50  # lines of one error message


class Data(NamedTuple):
    """The photos of a run."""

    train: Annotations
    val: Annotations
    damaged: list[str]  # why photos of either were left out, a line for each fault


def load_data(run: Run, max_faults: int | None = MAX_FAULTS) -> Data:
    """Training photos and validation photos.

    Raises:
        DataError: with the faults of both, all of them or the first `max_faults`.
    """
    loaded = _load(run, ("train", "val"), max_faults)
    train, val = loaded["train"].photos, loaded["val"].photos
    for name in train.absent_classes():
        run.say(f"warning: data.train has no object of class {name!r}; it cannot be learned")
    for warning in shared_warning(train, val):
        run.say(warning)
    return Data(train, val, left_out(loaded.values()))


def load_part(run: Run, part: Literal["train", "val"]) -> Annotations:
    """The photos of one part alone.

    Raises:
        DataError: with the first faults in them.
    """
    return _load(run, (part,), MAX_FAULTS)[part].photos


def _load(run: Run, parts: tuple[str, ...], max_faults: int | None) -> dict[str, Loaded]:
    faults: list[str] = []
    loaded: dict[str, Loaded] = {}
    digests: dict[Path, FolderDigest] = {}

    def load() -> None:
        with suppress(Stopped):  # the others have to hear of it
            for part in parts:
                try:
                    loaded[part] = _load_part(run, part, digests)
                except DataError as error:
                    faults.extend(str(error).splitlines())

    for is_mains_turn in (True, False):  # the others need not look again at what is remembered then
        if run.world.is_main == is_mains_turn:
            load()
        _settle(run, faults, max_faults)
    _compare(run, loaded)
    for part, result in loaded.items():
        result.photos.require_objects(f"data.{part}", with_difficult=part == "train" and run.config.data.keep_difficult)
        for note in result.notes:
            run.say(attributed(f"data.{part}", note))
    return loaded


def _compare(run: Run, loaded: dict[str, Loaded]) -> None:
    """Every process has to have the same photos: batches are shared out by their numbers.

    Raises:
        DataError: one of them has others, as where a photo is damaged or an annotation is older on one machine alone.
    """
    remedy = "give all machines the same files"
    every = run.world.all_gather([(len(part.photos), part.num_damaged) for part in loaded.values()])
    for rank, theirs in enumerate(every):
        if theirs != every[0]:
            counts, ours = (" and ".join(str(count) for count, _ in each) for each in (theirs, every[0]))
            raise DataError(f"process {rank} can read {counts} photos, the first {ours}; {remedy}")
    for name, part in loaded.items() if run.world.size > 1 else ():
        digests = run.world.all_gather(part.photos.digest())
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise DataError(
                    f"data.{name}: process {rank} has other photos or annotations ({digest}) than process 0 ({digests[0]}), "
                    f"though as many; {remedy}"
                )


def _settle(run: Run, faults: list[str], max_faults: int | None) -> None:
    """Ends all processes alike, where one of them was asked to stop or found a fault.

    The others wait for one that looks at its photos as long as it lives, which with a large data set takes hours.
    """
    shares = run.world.all_gather((run.stop.signal, list(dict.fromkeys(faults))), patient=True)  # of a folder named twice, once
    run.stop.signal = strongest(number for number, _ in shares)
    if run.stop():
        raise Stopped(run.stop.signal)
    first_rank = {line: rank for rank, (_, lines) in reversed(list(enumerate(shares))) for line in lines}
    lines = [f"process {rank}: {line}" if rank else line for line, rank in sorted(first_rank.items(), key=lambda item: item[1])]
    if lines:
        raise DataError("\n".join(first_faults(lines, max_faults, "; scripts/check_data.py lists them all")))


def left_out(loaded: Iterable[Loaded]) -> list[str]:
    """Why photos were left out, a line for each fault; of a folder that both parts name, once."""
    return list(dict.fromkeys(line for part in loaded for line in part.damaged))


def first_faults(lines: list[str], max_faults: int | None, hint: str = "") -> list[str]:
    """Some of the faults, and how many there are besides."""
    more = len(lines) - len(lines[:max_faults])
    return [*lines[:max_faults], *([f"... and {more} more faults{hint}"] if more else [])]


def _load_part(run: Run, part: str, digests: dict[Path, FolderDigest]) -> Loaded:
    """The photos of data.train or data.val, every one of them looked at, with a bar on a terminal."""
    data, processes = run.config.data, max(1, num_cores() // run.world.local_size)
    with tqdm(desc=f"reading data.{part}", unit="photo", disable=None if run.world.is_main else True, leave=False) as bar:

        def watch(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if run.stop():
                raise Stopped(run.stop.signal)

        return load_photos(
            getattr(data, part),
            data.root,
            data.class_names,
            seed=run.config.seed,
            ignore_others=data.other_classes == "ignore",
            workers=processes if data.workers == "auto" else min(processes, data.workers),
            watch=watch,
            data_format=data.format,
            fraction=data.fraction if part == "train" else 1.0,
            damaged=data.damaged,
            digests=digests,
        )


def train_dataset(run: Run, photos: Annotations, preprocessing: Preprocessing) -> DetectionDataset:
    """The photos, and tiles of large ones, as augmented samples."""
    config = run.config
    windows = cut(photos, config.data.tiles, config.seed).of_training()
    return DetectionDataset(
        photos, preprocessing.size, preprocessing.fill, config.seed, Switches(**config.augment.model_dump()),
        config.data.keep_difficult, _cache(run, windows, preprocessing.size), windows,
    )  # fmt: skip


def _cache(run: Run, windows: Windows, output: int) -> ImageCache | None:
    """Where decoded photos and tiles are kept, if that is wanted and has room."""
    if run.config.data.cache == "none":
        return None
    size, count = cache_bytes(windows.sizes, output), cache_copies(run) * run.world.local_size
    if all(run.world.all_gather(fits(size, count))):
        return ImageCache(windows.sizes, output)
    copies = f" for each of {count} processes" if count > 1 else ""
    run.say(
        f"warning: data.cache: ram would take {size / 2**30:.1f} GiB{copies}, more than {USED:.0%} of the "
        f"{free_memory() / 2**30:.1f} GiB of memory that are free; the run does without it"
    )
    return None


def cache_copies(run: Run) -> int:
    """How many caches this process and its workers fill."""
    return num_caches(choose_workers(run.config.data.workers, run.device, run.world))


def eval_dataset(run: Run, photos: Annotations, preprocessing: Preprocessing) -> DetectionDataset:
    """The photos as they are, and all tiles of large ones, as evaluation takes them; with the objects that the loss of
    training counts."""
    data = run.config.data
    windows = cut(photos, data.tiles, run.config.seed)
    return DetectionDataset(photos, preprocessing.size, preprocessing.fill, keep_difficult=data.keep_difficult, windows=windows)


def tiles_notes(config: Config, samples: DetectionDataset, val_samples: DetectionDataset) -> list[str]:
    """What there is to say of a run's tiles, a line each."""
    if not config.data.tiles:
        return []
    size = config.data.tiles.size
    train, val = (each.windows for each in (samples, val_samples))
    num_train, num_val = len(train) - len(samples.photos), len(val) - len(val_samples.photos)
    if not num_train + num_val:
        return [f"warning: data.tiles.size {size}: no photo is larger, so there are no tiles"]
    num_empty = int((np.diff(train.starts)[len(samples.photos) :] == 0).sum())
    lines = [f"tiles of {size} pixels: {num_train} to train on, {num_empty} of them without objects; {num_val} to evaluate on"]
    if num_empty and not config.loss.min_neg:
        lines.append("warning: loss.min_neg 0: tiles without objects teach nothing; set it to 3, or data.tiles.background to 0")
    return lines


def train_loader(run: Run, samples: DetectionDataset, iterations: int, first_iteration: int) -> WatchedLoader[Batch]:
    """The micro-batches of this process, from an iteration on.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """
    accumulate, seed = run.config.train.accumulate, run.config.seed
    order = TrainOrder(len(samples), run.batch_size, iterations, seed, first_iteration, accumulate, run.world)
    # Several processes have to agree on a stop after a step, and nobody can leave one that the others are in.
    return _loader(run, samples, order, run.stop if run.world.size == 1 else None)


def val_loader(run: Run, samples: DetectionDataset) -> WatchedLoader[Batch]:
    """This process's share of the photos, in order, each with all its tiles."""
    return _loader(run, samples, EvalOrder(samples.windows.photos, run.config.eval.batch_size, run.world), run.stop)


def _loader(run: Run, samples: DetectionDataset, order: Sampler[list[Key]], stop: StopRequest | None) -> WatchedLoader[Batch]:
    return make_loader(samples, order, choose_workers(run.config.data.workers, run.device, run.world), run.device, stop)


def fullest_batch(samples: DetectionDataset, count: int) -> Batch:
    """The samples with most objects, which take most memory; some of them more than once where there are fewer."""
    order = np.argsort(-np.diff(samples.windows.starts), kind="stable")
    return samples.__getitems__([(0, int(index)) for index in np.resize(order, count)])
