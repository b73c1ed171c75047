"""Files of detections, written as they arrive and valid at any time: an interrupted program loses no earlier result."""

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol, Self
from xml.etree import ElementTree

import numpy as np

from ssd.boxes import edges_to_voc
from ssd.deploy.inputs import output_name
from ssd.inference.predict import Detections
from ssd.system.files import naming, write_whole
from ssd.system.images import printable


class FrameDetections(NamedTuple):
    """The detections in one photo or frame."""

    name: str  # of the input
    frame: int | None  # number in the video, from 0; None for photos
    width: int
    height: int
    detections: Detections


class Format(Protocol):
    """A file, or a folder of files, in one format."""

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None: ...

    def add(self, entries: Sequence[FrameDetections]) -> None:
        """Write all entries, or nothing and raise OSError. Except in COCO format, they are on disk on return."""


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


class JsonFile:
    """detections.json: a list with one entry per photo or frame, closed by ] after every addition."""

    END = b"\n]\n"

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None:
        self.path = folder / "detections.json"
        self.file = closing.enter_context(self.path.open("wb", buffering=0))
        self.end = self.file.write(b"[")  # where the next entry goes
        self.file.write(self.END)

    def add(self, entries: Sequence[FrameDetections]) -> None:
        is_first = self.end == 1
        text = "".join(f"{'' if is_first and i == 0 else ','}\n{json.dumps(as_json(entry))}" for i, entry in enumerate(entries))
        with naming(self.path):
            self.end = append(self.file, self.end, text.encode(), self.END)


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


class VocFiles:
    """Annotations/NAME.xml: one file per photo, usable for training; video frames are skipped."""

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None:
        self.folder = folder / "Annotations"
        self.taken: set[str] = set()

    def add(self, entries: Sequence[FrameDetections]) -> None:
        for entry in entries:
            if entry.frame is None:
                write_voc(self.folder / output_name(entry.name, ".xml", self.taken), entry)


class CocoFile:
    """coco.json: images, annotations and categories. Two of its lists grow, so each has a temporary file; they are joined at
    the end and whenever the number of images has doubled."""

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None:
        self.path = folder / "coco.json"
        self.categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
        self.images, self.annotations = (closing.enter_context(tempfile.TemporaryFile()) for _ in range(2))  # noqa: SIM115
        self.num_images, self.num_annotations, self.num_written = 0, 0, -1
        self._write()
        closing.callback(self._finish)

    def add(self, entries: Sequence[FrameDetections]) -> None:
        for entry in entries:
            image, annotations = as_coco(entry, self.num_images + 1, self.num_annotations + 1)
            for file, count, items in (
                (self.images, self.num_images, [image]),
                (self.annotations, self.num_annotations, annotations),
            ):
                file.write("".join(f"{',' if count + i else ''}\n{json.dumps(item)}" for i, item in enumerate(items)).encode())
            self.num_images += 1
            self.num_annotations += len(annotations)
        if self.num_images >= 2 * self.num_written:
            self._write()

    def _write(self) -> None:
        def write(file: IO[bytes]) -> None:
            file.write(f'{{"categories": {json.dumps(self.categories)},\n"images": ['.encode())
            for part, after in ((self.images, b'\n],\n"annotations": ['), (self.annotations, b"\n]}\n")):
                part.seek(0)
                shutil.copyfileobj(part, file)
                file.write(after)

        write_whole(self.path, write)
        self.num_written = self.num_images

    def _finish(self) -> None:
        if self.num_written < self.num_images:
            self._write()


def append(file: io.FileIO, end: int, content: bytes, closing: bytes = b"") -> int:
    """Append to a file: all of the content or, on an error such as a full disk, nothing.

    Args:
        file: unbuffered.
        end: number of bytes before the current `closing`.
        content: to append.
        closing: last bytes of the file.

    Returns:
        The new `end`.

    Raises:
        OSError: the content cannot be written.
    """
    file.seek(end)
    rest = content + closing
    try:
        while rest:  # a disk that is filling up first accepts a part
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(end)
        file.seek(end)
        file.write(closing)
        raise
    return end + len(content)


FORMATS: dict[str, type[Format]] = {"json": JsonFile, "csv": CsvFile, "voc": VocFiles, "coco": CocoFile}


def objects(entry: FrameDetections) -> Iterator[tuple[np.ndarray, float, str]]:
    """Return box, score and class name of each object."""
    detections = entry.detections
    return zip(detections.boxes, detections.scores.tolist(), detections.names, strict=True)


def as_json(entry: FrameDetections) -> dict[str, object]:
    listed = [
        {"class": name, "score": round(score, 4), "box": [round(float(value), 1) for value in box]}
        for box, score, name in objects(entry)
    ]
    frame = {} if entry.frame is None else {"frame": entry.frame}
    return {"name": entry.name, **frame, "width": entry.width, "height": entry.height, "objects": listed}


def as_coco(entry: FrameDetections, image_id: int, first_id: int) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Return COCO's image and annotations: boxes are left, top, width and height; categories count from 1."""
    file_name = entry.name if entry.frame is None else f"{entry.name}#{entry.frame}"
    image = {"id": image_id, "file_name": file_name, "width": entry.width, "height": entry.height}
    annotations = []
    detections = entry.detections
    for (x1, y1, x2, y2), score, label in zip(detections.boxes, detections.scores.tolist(), detections.labels, strict=True):
        box = [round(float(value), 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        annotations.append(
            {
                "id": first_id + len(annotations), "image_id": image_id, "category_id": int(label) + 1, "bbox": box,
                "area": round(box[2] * box[3], 2), "iscrowd": 0, "score": round(score, 4),
            }
        )  # fmt: skip
    return image, annotations


def write_voc(path: Path, entry: FrameDetections) -> None:
    """Write an annotation in VOC format."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = PurePosixPath(entry.name).name
    size = ElementTree.SubElement(root, "size")
    for side, value in (("width", entry.width), ("height", entry.height), ("depth", 3)):
        ElementTree.SubElement(size, side).text = str(value)
    for box, score, name in objects(entry):
        item = ElementTree.SubElement(root, "object")
        # XML allows no other control characters.
        ElementTree.SubElement(item, "name").text = "".join(c if c in "\t\n" else printable(c) for c in name)
        ElementTree.SubElement(item, "difficult").text = "0"
        ElementTree.SubElement(item, "score").text = f"{score:.4f}"
        bndbox = ElementTree.SubElement(item, "bndbox")
        corners = edges_to_voc(box)
        corners[2:] = np.maximum(corners[2:], corners[:2])  # a box less than a pixel wide would be inverted
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ElementTree.SubElement(bndbox, side).text = f"{value:.1f}"
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.indent(root)
    tree = ElementTree.ElementTree(root)
    write_whole(path, lambda file: tree.write(file, encoding="utf-8"), outlasts_power_cut=False)
