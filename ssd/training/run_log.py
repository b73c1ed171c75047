"""The log of a run: messages and a progress bar while it trains, metrics.jsonl and TensorBoard for later.

`RunLog` is what the trainer talks to; `RecordFile` writes; below are reading and the pictures.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.loading.dataset import DetectionDataset
from ssd.boxes import voc_to_edges
from ssd.evaluation.evaluate import Evaluation
from ssd.inference.pictures import TRUTH, contact_sheet, draw_boxes, evenly_spaced
from ssd.system.errors import optional
from ssd.system.files import naming, write_text
from ssd.system.machine import num_cores
from ssd.training.build import RunParts
from ssd.training.datasets import tiles_notes
from ssd.training.run import Run
from ssd.weights.checkpoint import TrainState

THRESHOLDS = np.linspace(0, 1, 127)  # scores at which TensorBoard shows precision and recall
KINDS = ("train", "eval")
# Charts that show training and validation together, under Custom Scalars; their names are regular expressions.
CHARTS = {name: ["Multiline", [f"{kind}/{name}$" for kind in KINDS]] for name in ("loss", "loss_l", "loss_c")}
LINE_EVERY = 10.0  # seconds between progress lines in a log file
NUM_PICTURED = 8  # photos in a picture


def describe(run: Run, parts: RunParts, iteration: int) -> None:
    """Print what is about to happen."""
    config, schedule = run.config, parts.schedule
    photos, val_photos = parts.train_set.photos, parts.val_set.photos
    what = "photos and tiles" if config.data.tiles else "photos"
    parameters = sum(parameter.numel() for parameter in parts.step.model.parameters())
    length = f"{schedule.iterations * schedule.batch_size / len(parts.train_set):.1f} epochs in total"
    lines = [
        f"data: {len(photos)} photos with {len(photos.labels)} objects to train on, {len(val_photos)} to evaluate on",
        *tiles_notes(config, parts.train_set, parts.val_set),
        f"model: {config.model.row.title}, {parameters:,} parameters, {len(config.data.class_names)} classes and background",
        f"training: iterations {iteration} to {schedule.iterations} of {schedule.batch_size} {what}, {length}",
        f"device: {run.device}, {str(run.dtype).removeprefix('torch.')}, {run.world.size} process(es); output: {run.folder}",
        *(f"warning: {warning}" for warning in schedule.warnings()),
    ]
    if config.train.teacher and config.train.optimizer == "sgd" and config.train.clip_grad_norm is None:
        lines.append(
            "warning: train.teacher: gradients are large until the network has learned what background is, and SGD may "
            "diverge; set train.clip_grad_norm: 10"
        )
    if run.threads.setting == "free" and not run.threads.measures:
        lines.append(
            "warning: train.threads=free has no effect here; it is for several threads of one process on a CPU, without "
            "train.compile"
        )
    elif isinstance(run.threads.setting, int) and run.device.type == "cpu":
        threads, cores = run.threads.setting * run.world.local_size, num_cores()
        if threads > cores:
            lines.append(
                f"warning: train.threads={run.threads.setting}: {threads} threads wait for one another on {cores} core(s), "
                f"which may be many times slower; {max(1, cores // run.world.local_size)} or fewer are faster"
            )
    for line in lines:
        run.say(line)


class RunLog:
    """The log of one run; silent in all processes but the main one.

    Args:
        folder: the run's output folder.
        iterations: length of the whole run.
        state: where it begins.
        val_set: the validation photos.
        visible: whether this process prints and writes.
    """

    def __init__(self, folder: Path, iterations: int, state: TrainState, val_set: DetectionDataset, visible: bool) -> None:
        self.iterations = iterations
        self.val_set = val_set
        self.records = RecordFile(folder, state.iteration, state.evaluated_at) if visible else None
        self.on_terminal = sys.stderr.isatty()
        self.last_line = 0.0  # when it was printed
        is_hidden = not (visible and self.on_terminal)
        self.bar = tqdm(total=iterations, initial=state.iteration, unit="it", dynamic_ncols=True, disable=is_hidden)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
        if self.records:
            self.records.close()

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self.records:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def step(self) -> None:
        """Count one more iteration."""
        self.bar.update()

    def trained(self, epoch: int, iteration: int, values: Mapping[str, Any], seconds_left: float) -> None:
        """Write a train record, and show it."""
        if self.records:
            self.records.write("train", epoch, iteration, values)
        teacher = f", distillation {values['loss_d']:.3f}" if "loss_d" in values else ""
        text = (
            f"loss {values['loss']:.3f} (l {values['loss_l']:.3f}, c {values['loss_c']:.3f}{teacher})  lr {values['lr']:.2e}  "
            f"{values['images_per_s']:.1f} images/s  data wait {values['data_wait']:.0%}  left {duration(seconds_left)}"
        )
        if self.on_terminal:
            self.bar.set_description_str(f"epoch {epoch}")
            self.bar.set_postfix_str(text)
        elif self.records and (time.monotonic() - self.last_line >= LINE_EVERY or iteration == self.iterations):
            self.last_line = time.monotonic()
            print(f"epoch {epoch}  iteration {iteration}/{self.iterations}  {text}", flush=True)

    def evaluated(self, epoch: int, iteration: int, evaluation: Evaluation) -> None:
        """Write an eval record, and print its table."""
        if self.records:
            self.records.write("eval", epoch, iteration, evaluation.record())
        self.say(evaluation.table())
        self.say(evaluation.summary)

    def picture_samples(self, samples: DetectionDataset) -> None:
        """Show training samples in TensorBoard."""
        if self.records:
            with optional("the picture of training samples"):
                self.records.picture("augmented samples", samples_picture(samples), 0)

    def illustrate(self, evaluation: Evaluation, iteration: int) -> None:
        """Show detections, and each class's precision-recall curve, in TensorBoard."""
        if not self.records:
            return
        with optional("the picture of validation photos"):
            self.records.picture("validation photos", detections_picture(self.val_set, evaluation), iteration)
        result = evaluation.result
        with optional("the precision-recall curves"):
            for label in np.flatnonzero(result.num_objects).tolist():
                name = f"precision-recall/{evaluation.classes[label]}"
                self.records.pr_curve(name, result.num_objects[label], result.at(label, THRESHOLDS), iteration)


class RecordFile:
    """The records of one run, in metrics.jsonl and for TensorBoard; a resumed run appends to them.

    Args:
        folder: the run's output folder.
        iteration: iterations done; later train records are dropped, because those iterations will be repeated.
        evaluated_at: iteration of the last evaluation; later eval records are dropped.
    """

    def __init__(self, folder: Path, iteration: int = 0, evaluated_at: int = -1) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            self._drop_after({"train": iteration, "eval": evaluated_at})
        self.folder = folder / "tensorboard"
        self.board: SummaryWriter | None = None
        self.hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        with optional(self.folder):
            self.board = SummaryWriter(str(self.folder), purge_step=iteration + 1)
        self._show(lambda board: board.add_custom_scalars({"training and validation": CHARTS}))

    def _drop_after(self, last: dict[str, int]) -> None:
        kept = []
        for line in _lines(self.path):
            record = _parse_record(line)
            if record and record["iteration"] <= last[record["kind"]]:
                kept.append(line)
        write_text(self.path, "".join(kept))

    def write(self, kind: str, epoch: int, iteration: int, values: Mapping[str, Any]) -> None:
        """Append one record; it is on disk when this returns."""
        record = {"kind": kind, "epoch": epoch, "iteration": iteration, **values}
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._show(lambda board: _write_scalars(board, kind, iteration, values))

    def picture(self, name: str, image: np.ndarray, iteration: int) -> None:
        """Show a picture `[H, W, 3]` uint8 RGB in TensorBoard, as JPEG: for photos, PNG needs ten times the time and space."""
        encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
        height, width, colours = image.shape
        content = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=encoded)
        summary = Summary(value=[Summary.Value(tag=name, image=content)])
        self._show(lambda board: board._get_file_writer().add_summary(summary, iteration))

    def pr_curve(self, name: str, num_objects: int, values: tuple[np.ndarray, np.ndarray, np.ndarray], iteration: int) -> None:
        """Show a precision-recall curve in TensorBoard.

        Args:
            name: of the curve.
            num_objects: objects in the ground truth.
            values: recall, precision and number of detections at each of THRESHOLDS, from `APResult.at`.
            iteration: of the evaluation.
        """
        recall, precision, counts = values
        true = np.rint(recall * num_objects)
        nothing = np.zeros_like(true)  # a detector has no true negatives
        parts = (true, counts - true, nothing, num_objects - true, precision, recall)
        self._show(lambda board: board.add_pr_curve_raw(name, *parts, iteration, len(THRESHOLDS)))

    def close(self) -> None:
        self._show(lambda board: board.close())
        threading.excepthook = self.hook

    def _show(self, write: Callable[[SummaryWriter], object]) -> None:
        """Write for TensorBoard. After the first failure nothing more is written: metrics.jsonl has all the numbers."""
        if self.board:
            with optional(self.folder):
                write(self.board)
                return
            self.board = None

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """Silence the errors of TensorBoard's thread: the next write raises them again."""
        if args.thread is None or not type(args.thread).__module__.startswith("tensorboard"):
            self.hook(args)


def _write_scalars(board: SummaryWriter, kind: str, iteration: int, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float):
            board.add_scalar(f"{kind}/{name}", value, iteration)
        elif isinstance(value, dict):
            for key, entry in value.items():
                if entry is not None:
                    board.add_scalar(f"{kind}/{name}/{key}", entry, iteration)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run in order, without damaged lines; an empty list if there are none."""
    path = folder / "metrics.jsonl"
    return [record for record in map(_parse_record, _lines(path)) if record] if path.exists() else []


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def _parse_record(line: str) -> dict[str, Any] | None:
    """Return the record in a line, or None if it is damaged, such as the last line of a run killed while it wrote."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    is_known = isinstance(record, dict) and record.get("kind") in KINDS and isinstance(record.get("iteration"), int)
    return record if is_known else None


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def samples_picture(samples: DetectionDataset) -> np.ndarray:
    """Draw training samples from across the data set as the network sees them, with their boxes."""
    batch = samples.__getitems__([(0, index) for index in evenly_spaced(len(samples), NUM_PICTURED)])
    cells = []
    for image, boxes, labels in zip(batch.images.numpy(), *(part.numpy() for part in batch.targets[:2]), strict=True):
        real = labels >= 0
        cells.append(draw_boxes(image, boxes[real] * samples.size, labels[real], samples.photos.classes))
    return contact_sheet(cells)


def detections_picture(samples: DetectionDataset, evaluation: Evaluation) -> np.ndarray:
    """Draw photos from across the validation set, each twice: ground truth in white, detections in colour."""
    photos = samples.photos
    cells = []
    best, _ = evaluation.best_score()
    for index in evenly_spaced(len(photos), NUM_PICTURED):
        image, truth, found = samples.image(index), photos.ground_truth(index), evaluation.detections[index]
        sure = found.scores >= best
        cells.append(draw_boxes(image, voc_to_edges(truth["boxes"]), truth["labels"], photos.classes, colour=TRUTH))
        cells.append(draw_boxes(image, found.boxes[sure], found.labels[sure], photos.classes, found.scores[sure]))
    return contact_sheet(cells)
