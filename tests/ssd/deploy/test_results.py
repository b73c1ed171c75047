import csv
import errno
import json
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ssd.deploy.label_formats import FrameDetections, as_coco
from ssd.deploy.results import Results
from ssd.inference.predict import Detections

CLASSES = ("cat", 'a, "b"\n& <c>', "US$5", "猫")


def entry(number: int) -> FrameDetections:
    labels = np.arange(number % 5) % len(CLASSES)
    boxes = np.arange(4 * len(labels), dtype=np.float32).reshape(-1, 4) + np.float32([0, 0, 9, 9])
    scores = np.linspace(0.9, 0.5, len(labels), dtype=np.float32)
    detections = Detections(boxes, labels, scores, [CLASSES[label] for label in labels])
    return FrameDetections(f"{number}.jpg", None, 100, 80, detections)


def read(folder: Path) -> tuple[list[str], int, list[str], int]:
    """Return names and number of objects in detections.json, then those in coco.json."""
    listed = json.loads((folder / "detections.json").read_text())
    coco = json.loads((folder / "coco.json").read_text())
    assert [item["id"] for item in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    names, num_objects = [each["name"] for each in listed], sum(len(each["objects"]) for each in listed)
    return names, num_objects, [image["file_name"] for image in coco["images"]], len(coco["annotations"])


def test_files_are_valid_after_every_addition(tmp_path):
    with Results(tmp_path, ["json", "csv", "coco"], CLASSES) as results:
        assert read(tmp_path) == ([], 0, [], 0)
        for number in range(1, 40):
            results.add([entry(number)])
            names, objects, images, annotations = read(tmp_path)
            assert names == [f"{i}.jpg" for i in range(1, number + 1)]
            with open(tmp_path / "detections.csv", newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            assert len(rows) == objects == results.num_objects
            assert images == names[: len(images)]
            assert number / 2 < len(images) <= number
            assert annotations == sum(i % 5 for i in range(1, len(images) + 1))
    assert read(tmp_path)[2:] == read(tmp_path)[:2]
    assert {row["class"] for row in rows} == set(CLASSES)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_full_disk_keeps_earlier_results(tmp_path, monkeypatch, kind):
    with Results(tmp_path, [kind], CLASSES) as results:
        results.add([entry(3)])
        before = (tmp_path / f"detections.{kind}").read_bytes()
        (writer,) = results.formats

        class Full:
            """A file on a disk with ten bytes left."""

            def __init__(self, file) -> None:
                self.file, self.room = file, 10

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(self, content: bytes) -> int:
                if not self.room and len(content) > 10:
                    raise OSError(errno.ENOSPC, "No space left on device")
                part = content[: max(self.room, 3)]
                self.room = 0
                return self.file.write(part)

        monkeypatch.setattr(writer, "file", Full(writer.file))
        with pytest.raises(OSError, match="No space left"):
            results.add([entry(4)])
    assert (tmp_path / f"detections.{kind}").read_bytes() == before


def test_an_annotation_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    with Results(tmp_path, ["voc"], CLASSES) as results:
        results.add([entry(3)])
        before = (tmp_path / "Annotations/3.xml").read_bytes()
    monkeypatch.setattr(ElementTree.ElementTree, "write", lambda _, file, **__: file.write(b"<annot") and 1 / 0)
    with Results(tmp_path, ["voc"], CLASSES) as results, pytest.raises(ZeroDivisionError):
        results.add([entry(3)])
    assert [path.name for path in (tmp_path / "Annotations").iterdir()] == ["3.xml"]
    assert (tmp_path / "Annotations/3.xml").read_bytes() == before


def test_memory_does_not_grow(tmp_path):
    entries = [entry(number) for number in range(50)]
    with Results(tmp_path, ["json", "csv", "coco"], CLASSES) as results:
        results.add(entries)
        tracemalloc.start()
        for _ in range(40):
            results.add(entries)
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (tmp_path / "detections.json").stat().st_size > 400_000
    assert grown < 50_000


TWO = Detections(
    np.array([[1.25, 2, 11.256, 12], [20, 30, 20.5, 30.25]], np.float32), np.array([3, 0]),
    np.array([0.87654, 0.5], np.float32), ["猫", "cat"],
)  # fmt: skip


def test_coco_entry_by_hand():
    image, annotations = as_coco(FrameDetections("a/b.jpg", None, 100, 80, TWO), 7, 40)
    assert image == {"id": 7, "file_name": "a/b.jpg", "width": 100, "height": 80}
    common = {"image_id": 7, "iscrowd": 0}
    assert annotations == [
        {**common, "id": 40, "category_id": 4, "bbox": [1.25, 2, 10.01, 10], "area": 100.1, "score": 0.8765},
        {**common, "id": 41, "category_id": 1, "bbox": [20, 30, 0.5, 0.25], "area": 0.12, "score": 0.5},
    ]
    assert as_coco(FrameDetections("a.mp4", 0, 100, 80, TWO), 1, 1)[0]["file_name"] == "a.mp4#0"


def test_voc_annotations_by_hand(tmp_path):
    """Pixels count from 1, the last one is part of the box, and the second box is less than a pixel wide."""
    with Results(tmp_path, ["voc"], CLASSES) as results:
        results.add([FrameDetections(f"far/below/{name}.jpg", None, 100, 80, TWO) for name in "ab"])
        results.add([FrameDetections("clip.mp4", 0, 100, 80, TWO)])  # whose frames are no files
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == ["Annotations/far/below/a.xml", "Annotations/far/below/b.xml"]
    root = ElementTree.parse(tmp_path / "Annotations/far/below/a.xml").getroot()
    assert root.findtext("filename") == "a.jpg"
    assert [(side.tag, side.text) for side in root.iterfind("size/*")] == [("width", "100"), ("height", "80"), ("depth", "3")]
    first, second = root.iterfind("object")
    assert [first.findtext(tag) for tag in ("name", "difficult", "score")] == ["猫", "0", "0.8765"]
    assert [corner.text for corner in first.iterfind("bndbox/*")] == ["2.2", "3.0", "11.3", "12.0"]
    assert [corner.text for corner in second.iterfind("bndbox/*")] == ["21.0", "31.0", "21.0", "31.0"]
    assert "<name>猫</name>" in (tmp_path / "Annotations/far/below/a.xml").read_text("utf-8")
