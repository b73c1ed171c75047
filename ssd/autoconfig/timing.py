"""Time the parts of a run on this machine by running a little of each."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from data.loading.dataset import DetectionDataset
from ssd.batch import Batch
from ssd.config import Config
from ssd.evaluation.report import write_report
from ssd.inference.pictures import evenly_spaced
from ssd.preprocessing import IMAGENET
from ssd.system.device import choose_device, choose_precision, keep_freed_memory
from ssd.system.distributed import World
from ssd.system.machine import OtherLoad
from ssd.system.stop import Stopped, StopRequest
from ssd.training.build import RunParts, build_parts, place
from ssd.training.datasets import Data, eval_dataset, train_dataset, train_loader
from ssd.training.run import Run, threads_of
from ssd.training.run_log import detections_picture
from ssd.training.validate import evaluate_photos, report_input
from ssd.weights.checkpoint import TrainState, save_checkpoint
from ssd.weights.pretrained import build_network

SECONDS = 3.0  # duration of the timed steps, unless MAX_STEPS end it before
MAX_STEPS = 50  # more than the loader's workers prefetch: prefetched batches would make steps look fast
WARM_UP = {"cuda": 5}  # first steps, which choose algorithms and allocate memory; one on other devices


class Timings(NamedTuple):
    """Seconds that the parts of a run take."""

    start: float  # from the command to the first step
    step: float  # waiting for data included
    decoding: float  # of all training photos, beyond reading them from data.cache
    checkpoint: float
    evaluation: float  # of all validation photos, with its picture
    end: float  # report and picture
    warning: str = ""  # if other programs kept the machine busy

    def of_run(self, iterations: int, evaluations: int, checkpoints: int) -> float:
        """Return the seconds of a whole run; each evaluation writes two checkpoints besides the numbered ones."""
        fixed = self.start + self.decoding + self.end
        written = (checkpoints + 2 * evaluations) * self.checkpoint
        return fixed + iterations * self.step + written + evaluations * self.evaluation


def try_out(config: Config, freeze: str | None, data: Data, start: float) -> Timings:
    """Time a network with random weights, before the real ones are available; `config` names none.

    `freeze` is the last frozen layer, `start` the seconds from the start of the command until now.
    """
    began = time.perf_counter()
    device = choose_device(config.device)
    keep_freed_memory()
    dtype = choose_precision(config.train.precision, device, config.model.row.separable)
    with threads_of(config, World(), device) as threads:
        run = Run(config, World(), device, dtype, Path(config.output_dir), StopRequest(), threads)
        network = build_network(len(config.data.class_names) + 1, config.model)
        place(run, network, freeze)
        parts = build_parts(run, data, network, IMAGENET)
        return measure(run, parts, start + time.perf_counter() - began)


def measure(run: Run, parts: RunParts, start: float) -> Timings:
    """Time each part of a run. This trains the network a little; files go to temporary folders.

    `start` is the seconds that starting took.

    Raises:
        Stopped: the run is asked to stop.
    """
    load = OtherLoad()
    run.threads.settle()
    decoding, samples = _time_decoding(run, parts)
    step = _time_step(run, parts, lambda count: iter(train_loader(run, samples, count, 0)))
    evaluation, end = _time_evaluation_and_end(run, parts)
    return Timings(start, step, decoding, _time_checkpoint(parts), evaluation, end, load.warning())


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Yield a list that receives the seconds of the block."""
    seconds: list[float] = []
    begin = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - begin)


def _time_decoding(run: Run, parts: RunParts) -> tuple[float, DetectionDataset]:
    """Return the seconds that decoding all photos adds to the first epoch, and samples of one batch that are cached.

    Without data.cache every step decodes: the seconds are 0, and nothing is cached.
    """
    photos = parts.train_set.photos
    some = photos.select(evenly_spaced(len(photos), run.batch_size))
    samples = train_dataset(run, some, parts.step.preprocessing)
    if samples.cache is None:
        return 0.0, samples
    keys = [(0, index) for index in range(len(some))]
    with _timed() as first:
        samples.__getitems__(keys)
    with _timed() as again:
        samples.__getitems__(keys)
    return max(0.0, first[0] - again[0]) / len(some) * len(photos), samples


def _time_step(run: Run, parts: RunParts, batches: Callable[[int], Iterator[Batch]]) -> float:
    """Return the seconds of a step: the faster of two rounds, since other load only ever slows one down.

    Every process does the same number of steps.
    """
    warm_up = WARM_UP.get(run.device.type, 1)
    stream = batches(warm_up + MAX_STEPS)

    def step() -> float:
        if run.stop():
            raise Stopped(run.stop.signal)
        with _timed() as seconds:
            run.threads.follow()
            output = parts.step([next(stream) for _ in range(run.config.train.accumulate)], 0)
            float(output.losses.sum())  # waits for the device
        return seconds[0]

    last = [step() for _ in range(warm_up)][-1]
    count = max(run.world.all_gather(min(max(round(SECONDS / last / 2), 1), MAX_STEPS // 2)))
    return min(sum(step() for _ in range(count)) / count for _ in range(2))


def _time_checkpoint(parts: RunParts) -> float:
    state = TrainState(classes=[], preprocessing={}, config={}, **parts.step.updater.state())
    with tempfile.TemporaryDirectory() as folder, _timed() as seconds:
        save_checkpoint(Path(folder) / "last.pt", state)
    return seconds[0]


def _time_evaluation_and_end(run: Run, parts: RunParts) -> tuple[float, float]:
    """Return the seconds of a full evaluation, extrapolated from one photo and from one batch, and those of the report."""
    photos, batch_size = parts.val_set.photos, run.config.eval.batch_size
    seconds = []
    ema = parts.step.updater.ema
    with ema.applied_to(parts.step.model) if ema else nullcontext():
        for count in (1, 1, batch_size):  # the first one warms up
            some = photos.select(evenly_spaced(len(photos), count))
            samples = eval_dataset(run, some, parts.step.preprocessing)
            evaluation = evaluate_photos(run, samples, parts.step.preprocessing, parts.step.model)
            seconds.append(evaluation.seconds)
    _, one, several = seconds
    another = max(several - one, 0.0) / (len(some) - 1) if len(some) > 1 else 0.0
    with _timed() as picture:
        detections_picture(samples, evaluation)
    with tempfile.TemporaryDirectory() as folder, _timed() as report:
        write_report(Path(folder) / "report.html", report_input(run, samples, evaluation, "best.pt"))
    return one + another * (len(photos) - 1) + picture[0], picture[0] + report[0]
