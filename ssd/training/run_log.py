"""What a run tells while it trains: lines and a bar for who watches, records and TensorBoard for later."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.loading.loader import DetectionDataset
from ssd.boxes import voc_to_edges
from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.pictures import TRUTH, contact_sheet, draw_boxes, evenly_spaced
from ssd.system.errors import optional
from ssd.system.files import naming, write_whole
from ssd.weights.checkpoint import TrainState

THRESHOLDS = np.linspace(0, 1, 127)  # of score, at which TensorBoard shows precision and recall


KINDS = ("train", "eval")


# What TensorBoard draws in one chart (under Custom Scalars): names are regular expressions there.
CHARTS = {name: ["Multiline", [f"{kind}/{name}$" for kind in KINDS]] for name in ("loss", "loss_l", "loss_c")}


PRValues = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, in their order, without lines that are damaged; empty where it has none."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [record for record in map(_record_in, lines) if record]


def _record_in(line: str) -> dict[str, Any] | None:
    """The record in a line; None in one that is damaged, such as the last of a run that was killed while it wrote."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    known = isinstance(record, dict) and record.get("kind") in KINDS and isinstance(record.get("iteration"), int)
    return record if known else None


class RecordFile:
    """The records of one run; a resumed run appends to the same files.

    Args:
        folder: the run's output folder.
        iteration: iterations done: later train records are of a time that will be repeated, and are dropped.
        evaluated_at: iteration of the last evaluation: likewise for later eval records.
    """

    def __init__(self, folder: Path, iteration: int = 0, evaluated_at: int = -1) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            self._drop_after({"train": iteration, "eval": evaluated_at})
        self.folder = folder / "tensorboard"
        self.board: SummaryWriter | None = None
        self.hook = threading.excepthook
        threading.excepthook = self._thread_ended
        with optional(self.folder):
            self.board = SummaryWriter(str(self.folder), purge_step=iteration + 1)
        self._show(lambda board: board.add_custom_scalars({"training and validation": CHARTS}))

    def _drop_after(self, last: dict[str, int]) -> None:
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            record = _record_in(line)
            if record and record["iteration"] <= last[record["kind"]]:
                kept.append(line)
        write_whole(self.path, lambda file: file.write("".join(kept).encode()))

    def write(self, kind: str, epoch: int, iteration: int, values: Mapping[str, Any]) -> None:
        """Appends one record, on disk when this returns."""
        record = {"kind": kind, "epoch": epoch, "iteration": iteration, **values}
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._show(lambda board: _write_scalars(board, kind, iteration, values))

    def _show(self, write: Callable[[SummaryWriter], object]) -> None:
        """Writes for TensorBoard. Where that fails once, nothing more is written there: it only shows what is recorded."""
        if self.board:
            with optional(self.folder):
                write(self.board)
                return
            self.board = None

    def _thread_ended(self, args: threading.ExceptHookArgs) -> None:
        """What the thread that writes for TensorBoard dies of is raised where it is given something next, and told there."""
        if args.thread is None or not type(args.thread).__module__.startswith("tensorboard"):
            self.hook(args)

    def picture(self, name: str, image: np.ndarray, iteration: int) -> None:
        """A picture `[H, W, 3]` uint8 RGB for TensorBoard, as JPEG: as PNG photos take ten times the time and the room."""
        encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
        height, width, colours = image.shape
        content = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=encoded)
        summary = Summary(value=[Summary.Value(tag=name, image=content)])
        self._show(lambda board: board._get_file_writer().add_summary(summary, iteration))

    def pr_curve(self, name: str, num_objects: int, values: PRValues, iteration: int) -> None:
        """A precision-recall curve for TensorBoard.

        Args:
            name: of the curve.
            num_objects: that there are to find.
            values: recall, precision and number of detections at each of THRESHOLDS, as `VOCResult.at` gives them.
            iteration: after which it was taken.
        """
        recall, precision, counts = values
        true = np.rint(recall * num_objects)
        nothing = np.zeros_like(true)  # a detector has no true negatives
        parts = (true, counts - true, nothing, num_objects - true, precision, recall)
        self._show(lambda board: board.add_pr_curve_raw(name, *parts, iteration, len(THRESHOLDS)))

    def close(self) -> None:
        self._show(lambda board: board.close())
        threading.excepthook = self.hook


def _write_scalars(board: SummaryWriter, kind: str, iteration: int, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float):
            board.add_scalar(f"{kind}/{name}", value, iteration)
        elif isinstance(value, dict):
            for key, entry in value.items():
                if entry is not None:
                    board.add_scalar(f"{kind}/{name}/{key}", entry, iteration)


class Progress:
    """Shows a run's progress; on other processes than the main one it is silent.

    Args:
        total: iterations of the whole run.
        done: iterations done before.
        visible: show anything at all.
        line_every: in a log file, seconds between two lines.
    """

    def __init__(self, total: int, done: int, visible: bool, line_every: float = 10.0) -> None:
        self.visible = visible
        self.line_every = line_every
        self.last_line = 0.0
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="it", dynamic_ncols=True, disable=not (visible and self.on_terminal))
        self.total = total

    def close(self) -> None:
        self.bar.close()

    def step(self) -> None:
        """One more iteration is done."""
        self.bar.update()

    def show(self, epoch: int, iteration: int, values: Mapping[str, Any]) -> None:
        """The latest train record; `images_per_s` and `seconds_left` among its values."""
        left = duration(values["seconds_left"])
        text = (
            f"loss {values['loss']:.3f} (l {values['loss_l']:.3f}, c {values['loss_c']:.3f})  lr {values['lr']:.2e}  "
            f"{values['images_per_s']:.1f} images/s  data wait {values['data_wait']:.0%}  left {left}"
        )
        if self.on_terminal:
            self.bar.set_description_str(f"epoch {epoch}")
            self.bar.set_postfix_str(text)
        elif self.visible and (time.monotonic() - self.last_line >= self.line_every or iteration == self.total):
            self.last_line = time.monotonic()
            print(f"epoch {epoch}  iteration {iteration}/{self.total}  {text}", flush=True)

    def say(self, text: str) -> None:
        """A line for the user, which does not break the bar."""
        if self.visible:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Clock:
    """Seconds of training, and those among them spent waiting for data."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waited = 0.0
        self.steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time of the block, once a step, is spent waiting for data."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block does not count as training."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    def lap(self) -> tuple[float, float, int]:
        """Seconds, seconds waited and steps since the last lap."""
        now = time.perf_counter()
        seconds, waited, steps = now - self.start, self.waited, self.steps
        self.start, self.waited, self.steps = now, 0.0, 0
        return seconds, waited, steps


PICTURED = 8  # photos of one picture


def samples_picture(samples: DetectionDataset) -> np.ndarray:
    """Training samples, spread over photos and tiles, as the network gets them, with their boxes."""
    batch = samples.__getitems__([(0, index) for index in evenly_spaced(len(samples), PICTURED)])
    cells = []
    for image, boxes, labels in zip(batch.images.numpy(), *(part.numpy() for part in batch.targets[:2]), strict=True):
        real = labels >= 0
        cells.append(draw_boxes(image, boxes[real] * samples.size, labels[real], samples.photos.classes))
    return contact_sheet(cells)


def detections_picture(samples: DetectionDataset, evaluation: Evaluation) -> np.ndarray:
    """Photos spread over the validation set, in pairs: ground truth in white, detections in colour."""
    photos = samples.photos
    cells = []
    best, _ = evaluation.best_score()
    for index in evenly_spaced(len(photos), PICTURED):
        image, truth, found = samples.image(index), photos.ground_truth(index), evaluation.detections[index]
        sure = found["scores"] >= best
        boxes, labels, scores = found["boxes"][sure], found["labels"][sure], found["scores"][sure]
        cells.append(draw_boxes(image, voc_to_edges(truth["boxes"]), truth["labels"], photos.classes, colour=TRUTH))
        cells.append(draw_boxes(image, voc_to_edges(boxes), labels, photos.classes, scores))
    return contact_sheet(cells)


class RunLog:
    """The log of one run; on other processes than the main one it is silent.

    Args:
        folder: of the run.
        iterations: of the whole run.
        state: where it begins.
        val_samples: that it is evaluated on.
        visible: whether this process speaks and writes.
    """

    def __init__(self, folder: Path, iterations: int, state: TrainState, val_samples: DetectionDataset, visible: bool) -> None:
        self.val_samples = val_samples
        self.records = RecordFile(folder, state.iteration, state.evaluated_at) if visible else None
        self.progress = Progress(iterations, state.iteration, visible)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.close()
        if self.records:
            self.records.close()

    def say(self, text: str) -> None:
        """A line for the user."""
        self.progress.say(text)

    def step(self) -> None:
        """One more iteration is done."""
        self.progress.step()

    def trained(self, epoch: int, iteration: int, values: Mapping[str, Any], seconds_left: float) -> None:
        """A train record."""
        if self.records:
            self.records.write("train", epoch, iteration, values)
        self.progress.show(epoch, iteration, {**values, "seconds_left": seconds_left})

    def evaluated(self, epoch: int, iteration: int, evaluation: Evaluation) -> None:
        """An eval record, and its figures for the user."""
        if self.records:
            self.records.write("eval", epoch, iteration, evaluation.record())
        self.say(evaluation.table())
        self.say(evaluation.summary)

    def picture_samples(self, samples: DetectionDataset) -> None:
        """Training samples as the network gets them, for TensorBoard."""
        if self.records:
            with optional("the picture of training samples"):
                self.records.picture("augmented samples", samples_picture(samples), 0)

    def illustrate(self, evaluation: Evaluation, iteration: int) -> None:
        """Detections, and each class's precision by recall, for TensorBoard."""
        if not self.records:
            return
        with optional("the picture of validation photos"):
            self.records.picture("validation photos", detections_picture(self.val_samples, evaluation), iteration)
        result = evaluation.result
        with optional("the curves of precision by recall"):
            for label in np.flatnonzero(result.num_objects).tolist():
                name = f"precision-recall/{evaluation.classes[label]}"
                self.records.pr_curve(name, result.num_objects[label], result.at(label, THRESHOLDS), iteration)
