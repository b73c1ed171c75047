import csv
import json

import cv2
import numpy as np
import pytest

from data.layouts.voc import parse_annotation
from data.shapes import CLASSES
from scripts import detect
from ssd.deploy.predictor import Predictor

LABELS = {name: label for label, name in enumerate(CLASSES)}


@pytest.fixture
def photos(shapes_root, tmp_path):
    """A folder with three photos, one of them further below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    paths = sorted((shapes_root / "shapes/JPEGImages").iterdir())
    for path, name in zip(paths, ("a.jpg", "b.jpg", "below/a.jpg"), strict=False):
        (folder / name).write_bytes(path.read_bytes())
    return folder


def run(*arguments: object) -> int:
    return detect.main([str(argument) for argument in arguments])


def test_a_folder_in_every_format(checkpoint, photos, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(checkpoint, photos, "--output", output, "--score", 0.4, "--formats", "json,csv,voc,coco", "--device", "cpu") == 0
    names = ["a.jpg", "b.jpg", "below/a.jpg"]
    expected = Predictor.from_checkpoint(checkpoint, "cpu", score_thresh=0.4)([photos / name for name in names])
    total = sum(len(entry.labels) for entry in expected)
    assert total > 3
    assert f"{total} objects in 3 photos" in capsys.readouterr().out

    found = {entry["name"]: entry for entry in json.loads((output / "detections.json").read_text())}
    rows = list(csv.DictReader((output / "detections.csv").read_text().splitlines()))
    coco = json.loads((output / "coco.json").read_text())
    ids = {image["file_name"]: image["id"] for image in coco["images"]}
    assert list(found) == names
    for name, entry in zip(names, expected, strict=True):
        image = cv2.imread(str(photos / name))
        assert (found[name]["height"], found[name]["width"]) == image.shape[:2]
        boxes = [item["box"] for item in found[name]["objects"]]
        np.testing.assert_allclose(np.array(boxes).reshape(-1, 4), entry.boxes, atol=0.06)
        assert [item["class"] for item in found[name]["objects"]] == entry.names
        own = [row for row in rows if row["name"] == name]
        np.testing.assert_allclose([float(row["score"]) for row in own], entry.scores, atol=1e-4)
        of_image = [item for item in coco["annotations"] if item["image_id"] == ids[name]]
        assert [coco["categories"][item["category_id"] - 1]["name"] for item in of_image] == entry.names
        for item, (x1, y1, x2, y2) in zip(of_image, entry.boxes, strict=True):
            np.testing.assert_allclose(item["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=0.02)
        # What is written as VOC reads back as the same boxes.
        annotation = parse_annotation(
            (output / "Annotations" / name).with_suffix(".xml"), {c: i for i, c in enumerate(CLASSES)}
        )
        has_area = (entry.boxes[:, 2:] - entry.boxes[:, :2] > 1).all(1)  # training leaves the others out
        assert has_area.any()
        np.testing.assert_allclose(annotation.boxes, entry.boxes[has_area], atol=0.06)
        assert annotation.labels.tolist() == entry.labels[has_area].tolist()
        assert cv2.imread(str(output / "pictures" / name)).shape == image.shape


def test_a_video(checkpoint, photos, tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (160, 120))
    image = cv2.resize(cv2.imread(str(photos / "a.jpg")), (160, 120))
    for _ in range(7):
        video.write(image)
    video.release()
    output = tmp_path / "out"
    assert run(checkpoint, tmp_path / "clip.avi", "--output", output, "--score", 0.4, "--frames", 5, "--batch-size", 2) == 0
    frames = json.loads((output / "detections.json").read_text())
    assert [entry["frame"] for entry in frames] == list(range(5))
    assert all(entry["objects"] for entry in frames)
    written = cv2.VideoCapture(str(output / "videos/clip.mp4"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 5


def test_broken_photos_are_told_and_do_not_stop_the_others(checkpoint, photos, tmp_path, capsys):
    (photos / "b.jpg").write_bytes(b"no photo")
    assert run(checkpoint, photos, "--output", tmp_path / "out", "--no-pictures") == 2
    shown = capsys.readouterr()
    assert "b.jpg: is no image" in shown.err
    assert "in 2 photos" in shown.out
    assert not (tmp_path / "out/pictures").exists()


def test_patterns_and_names_that_meet(checkpoint, photos, tmp_path):
    assert run(checkpoint, f"{photos}/**/*.jpg", "--output", tmp_path / "out", "--no-pictures") == 0
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert sorted(entry["name"] for entry in found) == ["a.jpg", "b.jpg", "below/a.jpg"]


def test_nothing_is_written_over(checkpoint, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(checkpoint, photos / "a.jpg", "--no-pictures") == 0
    assert (tmp_path / "runs/detect/detections.json").exists()
    assert (tmp_path / "runs/detect-2/detections.json").exists()
    assert run(checkpoint, photos / "a.jpg", "--output", "runs/detect") == 2
    assert "is not empty" in capsys.readouterr().err
    assert run(checkpoint, photos / "a.jpg", "--output", "runs/detect", "--overwrite") == 0


@pytest.mark.parametrize(
    "inputs, said",
    [
        (["https://example.org/a.jpg"], "addresses are not fetched"),
        (["none.jpg"], "none.jpg: no such file"),
        (["none*.jpg"], "no file fits the pattern"),
        (["{empty}"], "holds no photos"),
        (["{text}"], "is neither a photo (.jpg"),
        (["camera:front"], "expected a number, such as camera:0"),
        (["camera:9"], "cannot be opened as a camera"),
        (["{clip}"], "cannot be opened as a video"),
        (["{photo}", "--formats", "yolo"], "--formats yolo: known are json"),
    ],
)
def test_what_cannot_be_detected_is_refused_in_a_line(checkpoint, tmp_path, capsys, inputs, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "clip.mp4").write_text("x")
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((9, 9, 3), np.uint8))
    names = {"empty": "empty", "text": "text.txt", "clip": "clip.mp4", "photo": "photo.png"}
    arguments = [text.format(**{name: tmp_path / file for name, file in names.items()}) for text in inputs]
    assert run(checkpoint, *arguments, "--output", tmp_path / "out") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_a_checkpoint_of_something_else(tmp_path, photos, capsys):
    assert run(photos / "a.jpg", photos) == 2
    assert "it was not loaded" in capsys.readouterr().err
