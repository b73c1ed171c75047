"""What the parts of a run take on this machine, each measured by doing it a little."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from data.loading.dataset import DetectionDataset
from ssd.batch import Batch
from ssd.evaluation.pictures import evenly_spaced
from ssd.evaluation.report import write_report
from ssd.system.machine import OtherLoad
from ssd.system.stop import Stopped
from ssd.training.build import RunParts
from ssd.training.datasets import eval_dataset, train_dataset, train_loader
from ssd.training.run import Run
from ssd.training.run_log import detections_picture
from ssd.training.validate import evaluate_photos, report_input
from ssd.weights.checkpoint import TrainState, save_checkpoint

SECONDS = 3.0  # of steps that are timed, as far as MOST_STEPS make them
MOST_STEPS = 50  # more than the loader's workers prepare in advance, which would flatter them
WARM_UP = {"cuda": 5}  # first steps, in which algorithms are chosen and memory is taken; elsewhere one


class Timings(NamedTuple):
    """Seconds."""

    start: float  # from the command to the first step
    step: float  # waiting for its data included
    decoding: float  # of all training photos, beyond what those kept in memory take
    checkpoint: float
    evaluation: float  # of all validation photos, with its picture
    end: float  # report and picture
    warning: str = ""  # where other programs kept the machine busy meanwhile

    def of_run(self, iterations: int, evaluations: int, checkpoints: int) -> float:
        """A whole run; each evaluation writes two checkpoints beside the numbered ones."""
        fixed = self.start + self.decoding + self.end
        written = (checkpoints + 2 * evaluations) * self.checkpoint
        return fixed + iterations * self.step + written + evaluations * self.evaluation


def measure(run: Run, parts: RunParts, start: float) -> Timings:
    """Does what a run does, for some seconds. The network is another one afterwards; nothing is kept of what is written.

    Args:
        run: the run.
        parts: of it.
        start: seconds that its start has taken.

    Raises:
        Stopped: the run is asked to stop.
    """
    load = OtherLoad()
    decoding, samples = _first_look(run, parts)
    step = _seconds_a_step(run, parts, lambda count: iter(train_loader(run, samples, count, 0)))
    evaluation, end = _evaluation_and_end(run, parts)
    return Timings(start, step, decoding, _a_checkpoint(parts), evaluation, end, load.warning())


@contextmanager
def _timed() -> Iterator[list[float]]:
    """A list that gets the seconds of the block."""
    seconds: list[float] = []
    begin = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - begin)


def _first_look(run: Run, parts: RunParts) -> tuple[float, DetectionDataset]:
    """Seconds that decoding all photos takes beyond taking them from memory, and a batch of samples that are in memory.

    Without data.cache every step decodes: the first are zero, the samples as they are.
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


def _seconds_a_step(run: Run, parts: RunParts, batches: Callable[[int], Iterator[Batch]]) -> float:
    """Of a few steps, timed twice; the shorter time counts, since a passing load makes one longer and none shorter. Every
    process does as many."""
    warm_up = WARM_UP.get(run.device.type, 1)
    stream = batches(warm_up + MOST_STEPS)

    def step() -> float:
        if run.stop():
            raise Stopped(run.stop.signal)
        with _timed() as seconds:
            taken = parts.step([next(stream) for _ in range(run.config.train.accumulate)], 0)
            float(taken.losses.sum())  # waits for the device
        return seconds[0]

    last = [step() for _ in range(warm_up)][-1]
    count = max(run.world.all_gather(min(max(round(SECONDS / last / 2), 1), MOST_STEPS // 2)))
    return min(sum(step() for _ in range(count)) / count for _ in range(2))


def _a_checkpoint(parts: RunParts) -> float:
    state = TrainState(classes=[], preprocessing={}, config={}, **parts.step.updater.state())
    with tempfile.TemporaryDirectory() as folder, _timed() as seconds:
        save_checkpoint(Path(folder) / "last.pt", state)
    return seconds[0]


def _evaluation_and_end(run: Run, parts: RunParts) -> tuple[float, float]:
    """Of all validation photos, by the time of one and of a batch; and of the report."""
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
