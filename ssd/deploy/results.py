"""Files of detections, written as they arrive and valid at any time: an interrupted program loses no earlier result."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from ssd.deploy.label_formats import (
    CocoFile,
    CvatFile,
    Format,
    FrameDetections,
    JsonList,
    LabelmeFiles,
    LabelStudioFile,
    VocFiles,
    YoloFiles,
    append,
    objects,
)
from ssd.system.files import naming


class Results:
    """The files of detections in several formats, a context manager.

    Args:
        folder: for the files; existing ones are replaced.
        formats: keys of `FORMATS`.
        classes: names, without background.
    """

    def __init__(self, folder: Path, formats: Collection[str], classes: Sequence[str]) -> None:
        self.num_inputs = 0  # photos and frames
        self.num_objects = 0
        with ExitStack() as closing:
            self.formats = [FORMATS[name](folder, classes, closing) for name in formats]
            self.closing = closing.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.close()

    def add(self, entries: Sequence[FrameDetections]) -> None:
        for each in self.formats:
            each.add(entries)
        self.num_inputs += len(entries)
        self.num_objects += sum(len(entry.detections.labels) for entry in entries)


class JsonFile(JsonList):
    """detections.json: a list with one entry per photo or frame."""

    FILE = "detections.json"

    def items(self, entry: FrameDetections) -> list[dict[str, object]]:
        listed = [
            {"class": name, "score": round(score, 4), "box": [round(float(value), 1) for value in box]}
            for box, score, name in objects(entry)
        ]
        frame = {} if entry.frame is None else {"frame": entry.frame}
        return [{"name": entry.name, **frame, "width": entry.width, "height": entry.height, "objects": listed}]


class CsvFile:
    """detections.csv: one line per detection."""

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None:
        self.path = folder / "detections.csv"
        self.file = closing.enter_context(self.path.open("wb", buffering=0))
        self.end = 0
        self._write([["name", "frame", "class", "score", "x1", "y1", "x2", "y2"]])

    def add(self, entries: Sequence[FrameDetections]) -> None:
        self._write(
            [entry.name, "" if entry.frame is None else entry.frame, name, f"{score:.4f}", *(f"{value:.1f}" for value in box)]
            for entry in entries
            for box, score, name in objects(entry)
        )

    def _write(self, rows: Iterable[Sequence[object]]) -> None:
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        with naming(self.path):
            self.end = append(self.file, self.end, text.getvalue().encode())


FORMATS: dict[str, type[Format]] = {
    "json": JsonFile, "csv": CsvFile, "voc": VocFiles, "coco": CocoFile, "yolo": YoloFiles, "cvat": CvatFile,
    "label-studio": LabelStudioFile, "labelme": LabelmeFiles,
}  # fmt: skip
