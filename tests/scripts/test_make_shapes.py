import subprocess
import sys

import pytest

import data.shapes
from data.shapes import CLASSES, write_shapes
from scripts.make_shapes import main
from tests.helpers.annotations import load
from tests.helpers.paths import ROOT


def test_any_number_of_processes_draws_the_same_files(tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path / "one"), "--train", "3", "--val", "2", "--seed", "5"]) == 0
    assert "3 + 2 images" in capsys.readouterr().out
    watched = []
    write_shapes(tmp_path / "two", 3, 2, 5, processes=3, progress=lambda *done: watched.append(done))
    assert watched == [(i, 5) for i in range(1, 6)]
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(names) == 5 + 5 + 3
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_processes_do_not_depend_on_the_parents_state(tmp_path):
    """The parent has used OpenCV's threads, and handles SIGTERM."""
    code = (
        "import signal, sys; from pathlib import Path; import cv2, numpy; from data.shapes import write_shapes\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "cv2.setNumThreads(4)\n"
        "cv2.GaussianBlur(numpy.zeros((2000, 2000, 3), numpy.uint8), (0, 0), 9)\n"
        "write_shapes(Path(sys.argv[1]), 3, 2, 5, processes=3)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=60, check=True)


def test_the_work_is_shared(tmp_path, monkeypatch):
    counts = []

    def draw_nothing(folder, *arguments):
        folder.mkdir(exist_ok=True)
        counts.append(arguments[3])

    monkeypatch.setattr(data.shapes, "write_shapes", draw_nothing)
    monkeypatch.setattr("scripts.make_shapes.num_cores", lambda: 7)
    assert main([str(tmp_path / "a")]) == 0
    assert main([str(tmp_path / "a"), "--train", "9", "--val", "9"]) == 0
    assert counts == [7, 1]


def test_small_shapes(tmp_path):
    assert main([str(tmp_path / "small"), "--small", "--train", "1", "--val", "1"]) == 0
    photos = load(tmp_path / "small", "trainval", CLASSES).photos
    assert photos.sizes.tolist() == [[1200, 1200]] * 2
    assert 20 <= len(photos.boxes) <= 80


def test_existing_files_are_kept(tmp_path, capsys):
    photo = tmp_path / "JPEGImages/000000.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"a photo")
    assert main([str(tmp_path), "--train", "1", "--val", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}: is not empty")
    assert photo.read_bytes() == b"a photo"
    assert main([str(tmp_path), "--train", "1", "--val", "1", "--overwrite"]) == 0
    assert photo.read_bytes() != b"a photo"


def test_an_interrupted_run_does_not_block_the_next(tmp_path, monkeypatch, capsys):
    def interrupted(folder, *_):
        folder.mkdir()
        (folder / "half.jpg").write_bytes(b"half")
        raise KeyboardInterrupt

    words = [str(tmp_path / "shapes"), "--train", "1", "--val", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(data.shapes, "write_shapes", interrupted)
        assert main(words) == 130
    assert main(words) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert not (tmp_path / "shapes/half.jpg").exists()


def test_invalid_options(tmp_path, capsys):
    for option in ("--train=0", "--val=x", "--seed=-1", "--train=99999999"):
        with pytest.raises(SystemExit, match=r"^2$"):
            main([str(tmp_path), option])
        assert "expected an integer" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert main([str(tmp_path / "file"), "--train", "1", "--val", "1"]) == 2
    assert "is a file" in capsys.readouterr().err
