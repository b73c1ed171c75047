import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from data.shapes import CLASSES
from scripts import export
from ssd.deploy import program
from ssd.deploy.export import metadata_of, resize
from ssd.deploy.predictor import Predictor
from ssd.evaluation.evaluate import Thresholds
from ssd.system.images import read_photo
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import ROOT
from tests.processes import completed


@pytest.fixture(scope="module")
def exported(checkpoint, shapes_root, tmp_path_factory):
    """An ONNX file, and what the command said."""
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    words = [sys.executable, "scripts/export.py", str(checkpoint), "--output", str(path), "--score", "0.35"]
    photos = ["--photos", str(shapes_root / "shapes/JPEGImages")]
    done = completed([*words, *photos], timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def test_it_is_checked_there_and_then(exported):
    path, shown = exported
    assert f"written: {path}" in shown
    assert "checked on 16 photos with" in shown
    assert "with 0 detections" not in shown


def test_a_batch_of_any_size_gives_what_pytorch_gives(exported, checkpoint, shapes_root):
    session = onnxruntime.InferenceSession(str(exported[0]))
    run, _ = program.load_program(exported[0], "onnx", torch.device("cpu"))
    paths = sorted((shapes_root / "shapes/JPEGImages").iterdir())[:6]
    predictor = Predictor.from_checkpoint(checkpoint, "cpu", "float32", score_thresh=0.35)
    for size, numbers in (((200, 310), (0, 1, 2)), ((301, 299), (3,)), ((600, 500), (4, 5))):
        photos = [cv2.resize(read_photo(paths[i]), size) for i in numbers]
        num_detections, box_difference, score_difference = program.compare(run, predictor, photos)
        assert num_detections > 3
        assert box_difference < 0.5
        assert score_difference < 1e-3
        boxes, labels, scores = session.run(["boxes", "labels", "scores"], {"images": np.stack(photos)})
        assert boxes.shape == (len(photos), 200, 4)
        for i, photo in enumerate(photos):
            _, (alone,), (scores_alone,) = session.run(["boxes", "labels", "scores"], {"images": photo[None]})
            assert abs((labels[i] >= 0).sum() - (alone >= 0).sum()) <= 1  # one may be at the very threshold
            count = (labels[i] >= 0).sum()
            np.testing.assert_allclose(scores[i, : count - 1], scores_alone[: count - 1], atol=1e-3)
            assert (scores[i, :count] > 0.35).all()
            assert (np.diff(scores[i]) <= 0).all()
            assert (labels[i, count:] == -1).all()
            assert not scores[i, count:].any()
            assert not boxes[i, count:].any()


def test_names_and_thresholds_travel_with_it(exported):
    metadata = onnxruntime.InferenceSession(str(exported[0])).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["thresholds"]) == {"score_thresh": 0.35, "nms_thresh": 0.45, "top_k": 200}


@pytest.mark.parametrize("height, width", [(300, 300), (241, 517), (1200, 900), (40, 30), (1, 1)])
def test_resize_is_opencvs(height, width):
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(torch.from_numpy(photo)[None], 300)[0].numpy(), cv2.resize(photo, (300, 300)))


def test_the_example_needs_nothing_of_this_project(exported, checkpoint, shapes_root, tmp_path):
    """Whatever the classes are called, and whatever letters the terminal has."""
    names = ["US$5_$x^", '"a", b', "tab\tin", "手袋", "<tag>&"]
    proto = onnx.load(exported[0])
    onnx.helper.set_model_props(proto, metadata_of(names, Thresholds()))
    onnx.save(proto, tmp_path / "a.onnx")
    script = tmp_path / "run_onnx.py"
    script.write_text((ROOT / "scripts/run_onnx.py").read_text())
    photo = sorted((shapes_root / "shapes/JPEGImages").iterdir())[0]
    (expected,) = Predictor.from_checkpoint(checkpoint, "cpu", "float32", score_thresh=0.35)(photo)
    for encoding in ("utf-8", "cp1252"):
        words = [sys.executable, "-W", "error", str(script), "a.onnx", str(photo)]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, env=environment, check=True, timeout=60)
        assert not done.stderr
        found = [line.removeprefix(f"{photo} ").rsplit(" ", 5)[0] for line in done.stdout.decode(encoding).splitlines()]
        shown = [name.encode(encoding, "backslashreplace").decode(encoding) for name in names]
        assert found == [shown[label] for label in expected.labels]


def test_without_photos_nothing_is_written(checkpoint, tmp_path, capsys):
    state = load_checkpoint(checkpoint)
    state.config["data"] = {"classes": list(CLASSES), "root": str(tmp_path), "train": [{"path": "a"}], "val": [{"path": "a"}]}
    save_checkpoint(tmp_path / "best.pt", state)
    assert export.main([str(tmp_path / "best.pt")]) == 2
    assert "no such folder" in (shown := capsys.readouterr().err)
    assert "name a folder with --photos" in shown
    assert export.main([str(tmp_path / "best.pt"), "--photos", str(tmp_path)]) == 2
    assert "holds no photos" in capsys.readouterr().err
    assert not (tmp_path / "best.onnx").exists()


ALONE = """
import sys, numpy, torch, torchvision
images = torch.from_numpy(numpy.load(sys.argv[2]))
path = sys.argv[1]
program = torch._inductor.aoti_load_package(path) if path.endswith(".aoti.pt2") else torch.export.load(path).module()
numpy.savez(sys.argv[3], *(values.detach().numpy() for values in program(images)))
assert not [name for name in sys.modules if name.split(".")[0] in ("ssd", "data", "train")]
"""


@pytest.mark.parametrize("kind", ["torch", "aoti"])
def test_programs_of_pytorch_run_alone_and_give_the_same(kind, checkpoint, shapes_root, tmp_path, capsys):
    if kind == "aoti" and not shutil.which("g++"):
        pytest.skip("no C++ compiler here")
    path = tmp_path / f"best{export.SUFFIXES_OF[kind]}"
    # No more than 400 detections a class can be left, so K is 400 times the classes.
    options = ["--format", kind, "--output", str(path), "--score", "0.35", "--top-k", "100000"]
    assert export.main([str(checkpoint), *options, "--photos", str(shapes_root / "shapes/JPEGImages")]) == 0
    shown = capsys.readouterr().out
    assert f"written: {path}" in shown
    assert f"classes: {', '.join(CLASSES)}" in shown
    assert "with 0 detections" not in shown
    _, metadata = program.load_program(path, kind, torch.device("cpu"))
    assert json.loads(metadata["thresholds"]) == {"score_thresh": 0.35, "nms_thresh": 0.45, "top_k": 400 * len(CLASSES)}
    photos = [cv2.resize(read_photo(each), (310, 200)) for each in sorted((shapes_root / "shapes/JPEGImages").iterdir())[:3]]
    np.save(tmp_path / "images.npy", np.stack([*photos, np.zeros_like(photos[0])]))
    words = [sys.executable, "-c", ALONE, str(path), str(tmp_path / "images.npy"), str(tmp_path / "found.npz")]
    done = completed(words, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    boxes, labels, scores = np.load(tmp_path / "found.npz").values()
    expected = Predictor.from_checkpoint(checkpoint, "cpu", "float32", score_thresh=0.35, top_k=10_000)(photos)
    for i, each in enumerate(expected):
        count = (labels[i] >= 0).sum()
        assert abs(count - len(each.labels)) <= 1  # one may be at the very threshold
        np.testing.assert_allclose(scores[i, : count - 1], each.scores[: count - 1], atol=1e-3)
        assert (labels[i, count:] == -1).all()
        assert not boxes[i, count:].any()
        assert not scores[i, count:].any()


def test_a_check_on_nothing_fails(checkpoint, shapes_root, tmp_path, capsys):
    words = [str(checkpoint), "--output", str(tmp_path / "a.onnx"), "--photos", str(shapes_root / "shapes/JPEGImages")]
    assert export.main([*words, "--score", "1"]) == 1
    assert "error: not checked: in 16 photos nothing is found from score 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--top-k=0", "--score=40", "--nms=-0.1"])
def test_options_have_bounds(checkpoint, capsys, option):
    with pytest.raises(SystemExit) as end:
        export.main([str(checkpoint), option])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: argument {option.partition('=')[0]}: expected ")


def test_the_example_says_how_it_is_used():
    for words in ([], ["none.onnx"]):
        done = subprocess.run([sys.executable, "scripts/run_onnx.py", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == "usage: python scripts/run_onnx.py FILE.onnx PHOTO...\n"


def test_options_that_do_not_go_together(checkpoint, capsys, monkeypatch):
    assert export.main([str(checkpoint), "--device", "cuda"]) == 2
    assert "an ONNX file runs on any device" in capsys.readouterr().err
    assert export.main([str(checkpoint), "--format", "torch", "--output", "x.onnx"]) == 2
    assert "has to end in .pt2" in capsys.readouterr().err
    assert export.main([str(checkpoint), "--output", "/nowhere/x.onnx"]) == 2
    assert "/nowhere/x.onnx: no such folder" in capsys.readouterr().err
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert export.main([str(checkpoint), "--format", "aoti"]) == 2
    assert "needs a C++ compiler" in capsys.readouterr().err
