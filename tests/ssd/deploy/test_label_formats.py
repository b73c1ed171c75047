"""Files for labelling tools: what they contain, read back without loss."""

import json
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from ssd.deploy.label_formats import FrameDetections
from ssd.deploy.results import Results
from ssd.inference.predict import Detections
from ssd.system.images import write_picture
from tests.helpers.annotations import load

CLASSES = ("cat", 'a "wild" <dog> & co', "große Eule")
RNG = np.random.default_rng(0)


def entry(name: str, count: int, frame: int | None = None) -> FrameDetections:
    width, height = 640, 481
    corners = np.sort(RNG.uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
    labels = np.arange(count) % 3
    boxes = corners.reshape(count, 4).astype(np.float32)
    return FrameDetections(
        name, frame, width, height, Detections(boxes, labels, RNG.uniform(0.2, 1, count), [CLASSES[i] for i in labels])
    )


ENTRIES = [entry("a.jpg", 3), entry("below/a b.jpg", 5), entry("ünï.png", 0), entry("clip.mp4", 4, frame=7)]
PHOTOS = ENTRIES[:3]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    with Results(folder, ["yolo", "cvat", "label-studio", "labelme"], CLASSES) as results:
        results.add(ENTRIES[:1])
        results.add(ENTRIES[1:])
    return folder


def expected(item: FrameDetections) -> list[tuple[str, list[float]]]:
    return list(zip(item.detections.names, item.detections.boxes.tolist(), strict=True))


def assert_same(found: list[tuple[str, list[float]]], item: FrameDetections, tolerance: float = 0.006) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected(item)]
    for (_, box), (_, known) in zip(found, expected(item), strict=True):
        assert box == pytest.approx(known, abs=tolerance)


def test_cvat(written):
    root = ElementTree.parse(written / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.iterfind("meta/task/labels/label")] == list(CLASSES)
    images = root.findall("image")
    assert [(image.get("id"), image.get("name")) for image in images] == [(str(i), each.name) for i, each in enumerate(PHOTOS)]
    for image, item in zip(images, PHOTOS, strict=True):
        assert (image.get("width"), image.get("height")) == ("640", "481")
        boxes = image.findall("box")
        found = [
            (str(box.get("label")), [float(box.get(side, "nan")) for side in ("xtl", "ytl", "xbr", "ybr")]) for box in boxes
        ]
        assert_same(found, item)
        assert all((box.get("occluded"), box.get("z_order")) == ("0", "0") for box in boxes)


def test_label_studio(written):
    tasks = json.loads((written / "label_studio.json").read_text(encoding="utf-8"))
    assert [unquote(task["data"]["image"].removeprefix("/data/local-files/?d=")) for task in tasks] == [i.name for i in PHOTOS]
    for task, item in zip(tasks, PHOTOS, strict=True):
        (prediction,) = task["predictions"]
        found = []
        for result, score in zip(prediction["result"], item.detections.scores, strict=True):
            assert (result["type"], result["from_name"], result["to_name"]) == ("rectanglelabels", "label", "image")
            assert result["score"] == pytest.approx(score, abs=1e-4)
            value, (width, height) = result["value"], (result["original_width"], result["original_height"])
            left, top = value["x"] * width / 100, value["y"] * height / 100
            box = [left, top, left + value["width"] * width / 100, top + value["height"] * height / 100]
            found.append((value["rectanglelabels"][0], box))
        assert_same(found, item)
    assert len({result["id"] for result in tasks[1]["predictions"][0]["result"]}) == 5


def test_labelme(written):
    for item in PHOTOS:
        content = json.loads((written / "labelme" / item.name).with_suffix(".json").read_text(encoding="utf-8"))
        assert content["imagePath"] == item.name.rpartition("/")[2]
        assert (content["imageWidth"], content["imageHeight"]) == (640, 481)
        assert_same([(shape["label"], [*shape["points"][0], *shape["points"][1]]) for shape in content["shapes"]], item)
        assert all(shape["shape_type"] == "rectangle" for shape in content["shapes"])


def test_yolo_is_read_back(written):
    """By this project's own reader, with the photos beside the labels."""
    names = yaml.safe_load((written / "data.yaml").read_text(encoding="utf-8"))["names"]
    assert list(names.values()) == list(CLASSES)
    for item in PHOTOS:
        write_picture(written / "images" / item.name, np.zeros((481, 640, 3), np.uint8))
    photos = load(written, classes=CLASSES).photos
    assert len(photos) == 3
    for index in range(3):
        (item,) = (item for item in PHOTOS if photos.path(index).endswith(f"/{item.name}"))
        rows = photos.objects(index)
        found = [(CLASSES[label], box) for label, box in zip(photos.labels[rows], photos.boxes[rows].tolist(), strict=True)]
        assert_same(found, item)


def test_files_of_tools_are_valid_after_every_addition(tmp_path):
    with Results(tmp_path, ["cvat", "label-studio"], CLASSES) as results:
        for count in range(3):
            assert len(ElementTree.parse(tmp_path / "annotations.xml").getroot().findall("image")) == count
            assert len(json.loads((tmp_path / "label_studio.json").read_text())) == count
            results.add([PHOTOS[count]])
