"""Detections in the formats of labelling tools: pre-labels to correct, or training data.

Except in COCO's format, frames of videos are skipped, since there is no file of each.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, ClassVar, NamedTuple, Protocol
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import yaml

from ssd.boxes import edges_to_voc
from ssd.deploy.inputs import output_name
from ssd.inference.predict import Detections
from ssd.system.files import naming, write_text, write_whole
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


def objects(entry: FrameDetections) -> Iterator[tuple[np.ndarray, float, str]]:
    """Return box, score and class name of each object."""
    detections = entry.detections
    return zip(detections.boxes, detections.scores.tolist(), detections.names, strict=True)


class JsonList:
    """A JSON file with a list, closed by ] after every addition."""

    FILE: ClassVar[str]
    END = b"\n]\n"

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None:
        self.path = folder / self.FILE
        self.file = closing.enter_context(self.path.open("wb", buffering=0))
        self.end = self.file.write(b"[")  # where the next entry goes
        self.file.write(self.END)

    def add(self, entries: Sequence[FrameDetections]) -> None:
        items = [item for entry in entries for item in self.items(entry)]
        is_first = self.end == 1
        text = "".join(f"{'' if is_first and i == 0 else ','}\n{json.dumps(item)}" for i, item in enumerate(items))
        with naming(self.path):
            self.end = append(self.file, self.end, text.encode(), self.END)

    def items(self, entry: FrameDetections) -> list[dict[str, object]]:
        """Return what the list receives for a photo or frame."""
        raise NotImplementedError


class VocFiles:
    """Annotations/NAME.xml: one file per photo, usable for training; video frames are skipped."""

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None:
        self.folder = folder / "Annotations"
        self.taken: set[str] = set()

    def add(self, entries: Sequence[FrameDetections]) -> None:
        for entry in entries:
            if entry.frame is None:
                write_voc(self.folder / output_name(entry.name, ".xml", self.taken), entry)


def write_voc(path: Path, entry: FrameDetections) -> None:
    """Write an annotation in VOC format."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = PurePosixPath(entry.name).name
    size = ElementTree.SubElement(root, "size")
    for side, value in (("width", entry.width), ("height", entry.height), ("depth", 3)):
        ElementTree.SubElement(size, side).text = str(value)
    for box, score, name in objects(entry):
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = _xml_text(name)
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


class YoloFiles:
    """labels/NAME.txt: a line with class, centre, width and height for each object, relative to the photo; data.yaml names the
    classes. Scores are left out, because tools take a sixth column for something else."""

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None:
        self.folder = folder / "labels"
        self.taken: set[str] = set()
        names = yaml.safe_dump({"names": dict(enumerate(classes))}, allow_unicode=True, sort_keys=False)
        write_text(folder / "data.yaml", names)

    def add(self, entries: Sequence[FrameDetections]) -> None:
        for entry in entries:
            if entry.frame is not None:
                continue
            boxes = entry.detections.boxes / np.array([entry.width, entry.height] * 2)
            centers = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
            lines = [
                f"{label} {' '.join(f'{value:.7f}' for value in row)}\n"
                for label, row in zip(entry.detections.labels.tolist(), centers.tolist(), strict=True)
            ]
            _write_text(self.folder / output_name(entry.name, ".txt", self.taken), "".join(lines))


class CvatFile:
    """annotations.xml: CVAT's format "CVAT 1.1" for images, to upload to a task with the same photos. It has no scores."""

    END = b"</annotations>\n"

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None:
        labels = "".join(f"<label><name>{escape(_xml_text(name))}</name><type>rectangle</type></label>" for name in classes)
        head = (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><mode>annotation</mode><labels>{labels}</labels></task></meta>\n"
        )
        self.path = folder / "annotations.xml"
        self.file = closing.enter_context(self.path.open("wb", buffering=0))
        self.end = self.file.write(head.encode())
        self.file.write(self.END)
        self.num_images = 0

    def add(self, entries: Sequence[FrameDetections]) -> None:
        photos = [entry for entry in entries if entry.frame is None]
        text = "".join(self._image(number, entry) for number, entry in enumerate(photos, start=self.num_images))
        with naming(self.path):
            self.end = append(self.file, self.end, text.encode(), self.END)
        self.num_images += len(photos)

    def _image(self, number: int, entry: FrameDetections) -> str:
        lines = [
            f'<image id="{number}" name={quoteattr(_xml_text(entry.name))} width="{entry.width}" height="{entry.height}">',
            *(
                f'<box label={quoteattr(_xml_text(name))} source="auto" occluded="0" z_order="0" '
                + " ".join(
                    f'{side}="{value:.2f}"' for side, value in zip(("xtl", "ytl", "xbr", "ybr"), box.tolist(), strict=True)
                )
                + "/>"
                for box, _, name in objects(entry)
            ),
            "</image>",
        ]
        return "\n".join([*lines, ""])


class LabelStudioFile(JsonList):
    """label_studio.json: tasks with predictions, for a project with the template "Object Detection with Bounding Boxes".

    Photos are named as Label Studio's local storage serves them: the path after `?d=` begins at its document root, so photos
    belong there under the names in the file.
    """

    FILE = "label_studio.json"

    def items(self, entry: FrameDetections) -> list[dict[str, object]]:
        if entry.frame is not None:
            return []
        scale = 100 / np.array([entry.width, entry.height] * 2)
        found = []
        for number, (box, score, name) in enumerate(objects(entry)):
            left, top, right, bottom = (box * scale).tolist()
            value = {"x": left, "y": top, "width": right - left, "height": bottom - top, "rotation": 0}
            found.append(
                {
                    "id": f"{number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "image_rotation": 0,
                    "original_width": entry.width, "original_height": entry.height, "score": round(score, 4),
                    "value": {**value, "rectanglelabels": [name]},
                }
            )  # fmt: skip
        mean = float(np.mean(entry.detections.scores)) if found else 0.0
        prediction = {"model_version": "ssd300", "score": round(mean, 4), "result": found}
        return [{"data": {"image": f"/data/local-files/?d={quote(entry.name)}"}, "predictions": [prediction]}]


class LabelmeFiles:
    """labelme/NAME.json: one file per photo, to place beside the photos."""

    def __init__(self, folder: Path, classes: Sequence[str], closing: ExitStack) -> None:
        self.folder = folder / "labelme"
        self.taken: set[str] = set()

    def add(self, entries: Sequence[FrameDetections]) -> None:
        for entry in entries:
            if entry.frame is None:
                text = json.dumps(_as_labelme(entry), indent=2, ensure_ascii=False)
                _write_text(self.folder / output_name(entry.name, ".json", self.taken), f"{text}\n")


def _as_labelme(entry: FrameDetections) -> dict[str, object]:
    shapes = [
        {
            "label": name, "points": np.round(box.astype(float), 2).reshape(2, 2).tolist(), "group_id": None,
            "description": f"score {score:.4f}", "shape_type": "rectangle", "flags": {}, "mask": None,
        }
        for box, score, name in objects(entry)
    ]  # fmt: skip
    photo = {"imagePath": PurePosixPath(entry.name).name, "imageData": None}
    size = {"imageHeight": entry.height, "imageWidth": entry.width}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, **photo, **size}


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, outlasts_power_cut=False)


def _xml_text(text: str) -> str:
    """Escape control characters, most of which XML does not allow."""
    return "".join(letter if letter in "\t\n" else printable(letter) for letter in text)


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
