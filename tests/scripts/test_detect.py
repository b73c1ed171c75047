import csv
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch

from data.layouts.voc_annotation import parse_annotation
from data.shapes import CLASSES
from scripts import detect
from ssd.boxes import iou
from ssd.deploy import detection, results
from ssd.deploy.inputs import find_inputs
from ssd.deploy.video import Video, VideoFile
from ssd.inference.predictor import Predictor
from ssd.system.device import keep_freed_memory
from ssd.system.errors import Failure
from ssd.system.images import DecodedPhoto, ImageError, read_photo, write_picture
from ssd.weights.checkpoint import load_checkpoint
from ssd.weights.sources import SHIPPED
from tests.helpers.paths import ROOT
from tests.helpers.photos import DAMAGED

LABELS = {name: label for label, name in enumerate(CLASSES)}


@pytest.fixture
def photos(shapes_root, tmp_path):
    """A folder with three photos, one in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    paths = sorted((shapes_root / "shapes/JPEGImages").iterdir())
    for path, name in zip(paths, ("a.jpg", "b.jpg", "below/a.jpg"), strict=False):
        (folder / name).write_bytes(path.read_bytes())
    return folder


def run(*arguments: object) -> int:
    try:
        return detect.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse's answer to an option that is wrong
        return error.code


def clip(path, photo, frames: int = 3, rate: float = 5) -> None:
    kind = "MJPG" if path.suffix == ".avi" else "mp4v"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*kind), rate, (160, 120))
    for _ in range(frames):
        video.write(cv2.resize(cv2.imread(str(photo)), (160, 120)))
    video.release()


def found_in(output) -> list[str]:
    return [entry["name"] for entry in json.loads((output / "detections.json").read_text())]


def test_detection_imports_neither_metrics_nor_plots(checkpoint, photos, tmp_path):
    program = "import sys; from scripts import detect; code = detect.main(sys.argv[1:]); print(code, *sys.modules, sep='\\n')"
    arguments = [str(checkpoint), str(photos / "a.jpg"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()
    assert {"0", "ssd.deploy.detection"} <= set(modules)
    assert not [name for name in modules if name.startswith(("pycocotools", "matplotlib", "ssd.evaluation"))]


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
        of_photo = [row for row in rows if row["name"] == name]
        np.testing.assert_allclose([float(row["score"]) for row in of_photo], entry.scores, atol=1e-4)
        of_image = [item for item in coco["annotations"] if item["image_id"] == ids[name]]
        assert [coco["categories"][item["category_id"] - 1]["name"] for item in of_image] == entry.names
        for item, (x1, y1, x2, y2) in zip(of_image, entry.boxes, strict=True):
            np.testing.assert_allclose(item["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=0.02)
        # What is written as VOC reads back as the same boxes.
        annotation = parse_annotation((output / "Annotations" / name).with_suffix(".xml"), LABELS)
        has_area = (entry.boxes[:, 2:] - entry.boxes[:, :2] > 1).all(1)  # training leaves the others out
        assert has_area.any()
        np.testing.assert_allclose(annotation.boxes, entry.boxes[has_area], atol=0.06)
        assert annotation.labels.tolist() == entry.labels[has_area].tolist()
        assert cv2.imread(str(output / "pictures" / name)).shape == image.shape


@pytest.mark.parametrize("name", ["half", "slim"])
def test_shipped_networks_find_objects_before_any_training(name, tmp_path, capsys):
    """Boxes drawn by hand around what the photos show; `half` is the network of commands without a checkpoint."""
    output = tmp_path / "out"
    checkpoint = ["slim"] if name == "slim" else []
    assert run(*checkpoint, ROOT / "tests/photos", "--output", output, "--no-pictures", "--device", "cpu") == 0
    found = {entry["name"]: entry["objects"] for entry in json.loads((output / "detections.json").read_text())}
    for photo, label, box in (
        ("astronaut.jpg", "person", [40, 9, 330, 399]),
        ("cat.jpg", "cat", [8, 0, 399, 265]),
        ("photographer.jpg", "person", [76, 58, 262, 399]),
    ):
        best = found[photo][0]
        assert (best["class"], best["score"] > 0.5) == (label, True)
        assert iou(torch.tensor([best["box"]]), torch.tensor([box]))[0, 0] > 0.6
    scores = load_checkpoint(SHIPPED[name]).class_scores  # the minimum of each class
    assert len(scores) == 20
    assert all(each["score"] >= scores[each["class"]] for objects in found.values() for each in objects)


@pytest.mark.parametrize(
    "words, said",
    [
        (["half"], "half: name photos after the checkpoint"),
        (["", "photo.png"], "error: .: is a folder; name a checkpoint in it"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["nowhere.pt", "photo.png"], "nowhere.pt: no such checkpoint"),
    ],
)
def test_a_missing_checkpoint_or_photo_is_explained(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", np.zeros((9, 9, 3), np.uint8))
    assert run(*words) == 2
    assert said in capsys.readouterr().err


def test_a_video(checkpoint, photos, tmp_path):
    clip(tmp_path / "clip.avi", photos / "a.jpg", frames=7)
    output = tmp_path / "out"
    assert run(checkpoint, tmp_path / "clip.avi", "--output", output, "--score", 0.4, "--frames", 5, "--batch-size", 2) == 0
    frames = json.loads((output / "detections.json").read_text())
    assert [entry["frame"] for entry in frames] == list(range(5))
    assert all(entry["objects"] for entry in frames)
    written = cv2.VideoCapture(str(output / "videos/clip.mp4"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 5


@pytest.mark.parametrize(
    "content, said",
    [(b"no photo", "is not a supported image"), (DAMAGED, "is damaged or truncated (")],
    ids=["text", "damaged"],
)
def test_broken_photos_are_reported_and_skipped(checkpoint, photos, tmp_path, capfd, content, said):
    (photos / "broken.jpg").write_bytes(content)
    assert run(checkpoint, photos, "--output", tmp_path / "out", "--no-pictures") == 2
    shown = capfd.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"error: {photos}/broken.jpg: {said}")
    assert "in 3 photos" in shown.out
    assert found_in(tmp_path / "out") == ["a.jpg", "b.jpg", "below/a.jpg"]
    assert not (tmp_path / "out/pictures").exists()


def test_patterns_and_equal_names(checkpoint, photos, tmp_path):
    assert run(checkpoint, f"{photos}/**/*.jpg", "--output", tmp_path / "out", "--no-pictures") == 0
    assert sorted(found_in(tmp_path / "out")) == ["a.jpg", "b.jpg", "below/a.jpg"]


def test_links_to_folders_are_followed_and_each_photo_is_listed_once(photos, tmp_path):
    """Including links in a circle, dead links, and links to another argument."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    for name in ("c.jpg", "deep/d.jpg"):
        (elsewhere / name).write_bytes((photos / "a.jpg").read_bytes())
    links = {
        photos / "again": photos, photos / "aside": photos / "below", photos / "above": tmp_path, photos / "gone": "nowhere",
        photos / "more": elsewhere, photos / "same": elsewhere, photos / "self": "self", elsewhere / "back": photos,
    }  # fmt: skip
    for link, target in links.items():
        link.symlink_to(target)
    names = ["a.jpg", "b.jpg", "below/a.jpg", "more/c.jpg", "more/deep/d.jpg"]
    assert [photo.name for photo in find_inputs([str(photos), str(elsewhere)]).photos] == names
    (photos / "only").mkdir()
    (photos / "only/link").symlink_to(elsewhere)
    assert [photo.name for photo in find_inputs([str(photos / "only")]).photos] == ["link/c.jpg", "link/deep/d.jpg"]


def test_nothing_is_overwritten(checkpoint, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(checkpoint, photos / "a.jpg", "--no-pictures") == 0
    assert (tmp_path / "runs/detect/detections.json").exists()
    assert (tmp_path / "runs/detect-2/detections.json").exists()
    assert run(checkpoint, photos / "a.jpg", "--output", "runs/detect") == 2
    assert "is not empty" in capsys.readouterr().err
    assert run(checkpoint, photos / "a.jpg", "--output", "runs/detect", "--overwrite") == 0


@pytest.mark.parametrize(
    "inputs, message",
    [
        (["https://example.org/a.jpg"], "URLs are not supported"),
        (["none.jpg"], "none.jpg: no such file"),
        (["none*.jpg"], "no file matches the pattern"),
        (["{empty}"], "contains no photos"),
        (["{text}"], "is neither a photo (.jpg"),
        (["camera:front"], "expected a number, such as camera:0"),
        (["camera:9"], "cannot be opened as a camera"),
        (["{clip}"], "cannot be opened as a video"),
        (["{photo}", "--formats", "pascal"], "argument --formats: unknown: 'pascal'; expected some of json"),
    ],
)
def test_invalid_inputs_are_refused_in_one_line(checkpoint, tmp_path, capsys, inputs, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "clip.mp4").write_text("x")
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((9, 9, 3), np.uint8))
    names = {"empty": "empty", "text": "text.txt", "clip": "clip.mp4", "photo": "photo.png"}
    arguments = [text.format(**{name: tmp_path / file for name, file in names.items()}) for text in inputs]
    assert run(checkpoint, *arguments, "--output", tmp_path / "out") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--batch-size", "0", "expected an integer ≥ 1, got '0'"),
        ("--frames", "-1", "expected an integer ≥ 1, got '-1'"),
        ("--frames", "2.5", "expected an integer ≥ 1"),
        ("--score", "40", "expected a number from 0 to 1, got '40'"),
        ("--nms", "nan", "expected a number from 0 to 1, got 'nan'"),
    ],
)
def test_options_have_bounds(checkpoint, capsys, option, value, message):
    assert run(checkpoint, "none.jpg", f"{option}={value}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: argument {option}: ")
    assert message in line


def test_a_broken_video_is_skipped(checkpoint, photos, tmp_path, capfd):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    clip(tmp_path / "good.avi", photos / "a.jpg")
    words = (photos / "a.jpg", tmp_path / "broken.mp4", tmp_path / "good.avi")
    assert run(checkpoint, *words, "--output", tmp_path / "out", "--formats", "json,csv,coco") == 2
    assert found_in(tmp_path / "out") == ["a.jpg", *["good.avi"] * 3]
    assert len(json.loads((tmp_path / "out/coco.json").read_text())["images"]) == 4
    lines = [line for line in capfd.readouterr().err.splitlines() if "frame" not in line and "photo" not in line]
    assert lines == [f"error: {tmp_path}/broken.mp4: cannot be opened as a video"]  # and no word of a library's


@pytest.mark.parametrize(
    "rate, written", [(119.881, 119.88), (1000, 1000), (29.97003, 29.97), (655.357, 655.4), (90_000, 25), (2e-4, 25)]
)
def test_videos_keep_their_frame_rate(photos, tmp_path, monkeypatch, capsys, rate, written):
    clip(tmp_path / "a.avi", photos / "a.jpg")
    video = Video(str(tmp_path / "a.avi"))
    monkeypatch.setattr(video, "rate", rate)
    job = detection.Job(None, None, tmp_path, 1, None, True)  # pyright: ignore[reportArgumentType]
    image = np.zeros((48, 64, 3), np.uint8)
    with video, job._video_file("a.avi", video, image) as file:
        for _ in range(12):
            file.write(image)
    assert cv2.VideoCapture(str(tmp_path / "videos/a.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(written, rel=1e-4)
    assert ("written at 25" in capsys.readouterr().err) == (written == 25)


def test_detection_continues_if_a_video_cannot_be_written(checkpoint, photos, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        clip(tmp_path / f"{name}.avi", photos / "a.jpg")
    monkeypatch.setattr(detection, "writable_rate", lambda _: 70_000)  # which MPEG-4 has no clock for
    words = (tmp_path / "a.avi", tmp_path / "b.avi", "--output", tmp_path / "out")
    assert run(checkpoint, *words) == 2
    assert found_in(tmp_path / "out") == [*["a.avi"] * 3, *["b.avi"] * 3]
    assert capsys.readouterr().err.count("cannot write a video of 160 × 120 pixels, 70000 frames/s") == 2
    assert not list((tmp_path / "out/videos").iterdir())


def test_an_undecodable_frame_is_skipped(checkpoint, photos, tmp_path, capsys):
    clip(tmp_path / "a.mp4", photos / "a.jpg", frames=12)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    starts = [match.start() for match in re.finditer(b"\0\0\1\xb6", content)]  # of MPEG-4's frames
    content[starts[5] : starts[6]] = bytes(starts[6] - starts[5])
    (tmp_path / "a.mp4").write_bytes(content)
    assert run(checkpoint, tmp_path / "a.mp4", "--output", tmp_path / "out") == 2
    frames = json.loads((tmp_path / "out/detections.json").read_text())
    assert [entry["frame"] for entry in frames] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert "a.mp4: 1 frames could not be decoded; 11 others could" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
def test_a_full_disk_leaves_no_broken_video_and_no_broken_picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)

    def write_video():
        with VideoFile(tmp_path / "a.mp4", 5, 160, 120) as video:
            for _ in range(20):
                video.write(noise)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(Failure, match="mp4: the video was incomplete"):
            write_video()
        with pytest.raises(OSError, match="png"):
            write_picture(tmp_path / "a.png", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_concurrent_commands_get_different_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: detection.output_folder(None, False, tmp_path / "runs/detect"), range(40)))
    assert len(set(folders)) == 40
    assert {folder.name for folder in folders} == {"detect", *(f"detect-{number}" for number in range(2, 41))}


def test_result_names_are_unique(checkpoint, photos, tmp_path):
    """Equal names in two folders, equal stems with two suffixes, and names that differ only in case."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a.png", "A.jpg"):
        cv2.imwrite(str(other / name), cv2.imread(str(photos / "a.jpg")))
    for folder in (photos, other):
        clip(folder / "clip.avi", photos / "a.jpg")
    clip(other / "clip.mp4", photos / "a.jpg")
    output = tmp_path / "out"
    words = (photos / "a.jpg", photos, other, photos / "below/../a.jpg")
    assert run(checkpoint, *words, "--output", output, "--formats", "json,voc") == 0
    names = list(dict.fromkeys(found_in(output)))
    assert names == ["a.jpg", "b.jpg", "below/a.jpg", "other/A.jpg", "a.png", "clip.avi", "other/clip.avi", "clip.mp4"]
    written = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert written == {
        "detections.json", *(f"pictures/{name}" for name in names[:5]),
        "Annotations/a.xml", "Annotations/b.xml", "Annotations/below/a.xml", "Annotations/other/A.xml", "Annotations/a.png.xml",
        "videos/clip.mp4", "videos/other/clip.mp4", "videos/clip.mp4.mp4",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_names_that_are_not_utf_8(checkpoint, photos, tmp_path):
    """cv2.imread, cv2.imwrite and cv2.VideoCapture crash on them."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    clip(tmp_path / "clip.avi", photos / "b.jpg")
    photos.rename(folder)
    (folder / "a.jpg").rename(folder / os.fsdecode(b"\xff\n.jpg"))
    (tmp_path / "clip.avi").rename(folder / os.fsdecode(b"film\xe9.avi"))
    output = tmp_path / os.fsdecode(b"out\xe9")
    assert run(checkpoint, folder, "--output", output, "--score", 0.4, "--formats", "json,csv,voc,coco") == 0
    names = ["b.jpg", "\\xff\\x0a.jpg", "below/a.jpg", *["film\\xe9.avi"] * 3]
    assert found_in(output) == names
    assert {row["name"] for row in csv.DictReader((output / "detections.csv").read_text().splitlines())} == set(names)
    assert ElementTree.parse(output / "Annotations/\\xff\\x0a.xml").findtext("filename") == names[1]
    assert read_photo(output / "pictures" / names[1]).any()
    assert (output / "videos/film\\xe9.mp4").stat().st_size > 1000


@pytest.mark.parametrize("end", [KeyboardInterrupt, "SIGTERM"])
def test_results_before_an_interruption_are_kept(checkpoint, photos, tmp_path, monkeypatch, capsys, end):
    detect_batch, batches = Predictor.detect, []
    handler = signal.getsignal(signal.SIGTERM)  # an earlier test's, perhaps

    def detect_and_end(self, pixels, batch_size):
        batches.append(len(pixels))
        if len(batches) == 3:
            if end == "SIGTERM":
                signal.raise_signal(signal.SIGTERM)
            raise KeyboardInterrupt
        return detect_batch(self, pixels, batch_size)

    monkeypatch.setattr(Predictor, "detect", detect_and_end)
    clip(tmp_path / "clip.avi", photos / "a.jpg")
    words = (photos, tmp_path / "clip.avi", "--batch-size", 1, "--formats", "json,csv,coco")
    assert run(checkpoint, *words, "--output", tmp_path / "out") == (143 if end == "SIGTERM" else 130)
    assert found_in(tmp_path / "out") == ["a.jpg", "b.jpg"]
    assert len(json.loads((tmp_path / "out/coco.json").read_text())["images"]) == 2
    assert "in 2 frames and photos" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_foreign_checkpoint_is_refused(tmp_path, photos, capsys):
    foreign = (photos / "a.jpg").rename(tmp_path / "a.pt")
    assert run(foreign, photos) == 2
    assert "not loaded: contains more than tensors" in capsys.readouterr().err


def test_photos_are_read_in_order_and_few_in_advance(photos, monkeypatch):
    begun = []

    def read(path, reduction):
        assert reduction(4000, 3000) == 1
        begun.append(path)
        if path.startswith("bad"):
            raise ImageError(f"{path}: no photo")
        return DecodedPhoto.whole(np.full((1, 1, 3), int(path), np.uint8))

    monkeypatch.setattr(detection, "read_reduced", read)
    paths = ["bad 0" if number == 5 else str(number) for number in range(50)]
    stream = detection.read_ahead(paths)
    for number, photo in zip(range(20), stream, strict=False):
        assert len(begun) <= number + 1 + detection.READ_AHEAD + 1
        if number == 5:
            with pytest.raises(ImageError, match="bad 0: no photo"):
                photo()
        else:
            assert photo().pixels[0, 0, 0] == number
    stream.close()
    assert len(begun) < 32  # those that were waiting are not read any more
    assert [photo() for photo in detection.read_ahead([])] == []


def test_unwritable_pictures_are_reported(checkpoint, photos, tmp_path, monkeypatch, capsys):
    real = detection.write_picture

    def write(path, image):
        if path.name == "b.jpg":
            raise ImageError("b.jpg: cannot be written")
        real(path, image)

    monkeypatch.setattr(detection, "write_picture", write)
    assert run(checkpoint, photos, "--output", tmp_path / "out", "--device", "cpu") == 2
    assert "error: b.jpg: cannot be written" in capsys.readouterr().err
    assert (tmp_path / "out/pictures/a.jpg").exists()
    assert len(found_in(tmp_path / "out")) == 3


def test_the_command_knows_every_format():
    assert tuple(results.FORMATS) == detect.FORMATS


def has_huge_pages() -> bool:
    """Return whether large buffers use pages of 2 MiB, of which few are touched."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[always]" in setting.read_text()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
@pytest.mark.skipif(has_huge_pages(), reason="page faults are few with huge pages")
def test_freed_memory_is_reused_for_large_tensors(checkpoint, photos, tmp_path):
    """Clearing new pages took a quarter of a batch's time on a CPU."""
    keep_freed_memory(False)
    assert run(checkpoint, photos, "--output", tmp_path / "out", "--device", "cpu") == 0
    size = 2**26  # bytes, two times what glibc maps by itself
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults) < size / resource.getpagesize() / 10
