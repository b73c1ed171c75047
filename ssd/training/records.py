"""What a run leaves for people and tools to read: metrics.jsonl and TensorBoard's events."""

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard import SummaryWriter

from ssd.system.errors import optional
from ssd.system.files import naming, write_whole

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
