import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.shapes import CLASSES
from scripts import label_next
from ssd.architecture import ARCHITECTURES
from ssd.config.schema import ModelConfig
from ssd.inference.predictor import Predictor
from ssd.preprocessing import IMAGENET
from ssd.system.images import read_photo, write_picture
from ssd.weights.checkpoint import TrainState, load_checkpoint, save_checkpoint
from ssd.weights.pretrained import build_network
from tests.helpers.photos import DAMAGED


@pytest.fixture
def photos(shapes_root, tmp_path) -> Path:
    """A folder with eight photos; one is there twice, one a second time mirrored, and one is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((shapes_root / "shapes/JPEGImages").iterdir())[:8]):
        shutil.copy(path, folder / f"{number}.jpg")
    shutil.copy(folder / "3.jpg", folder / "copy.jpg")
    write_picture(folder / "mirrored.jpg", read_photo(folder / "4.jpg")[:, ::-1])
    (folder / "broken.jpg").write_bytes(DAMAGED)
    return folder


def run(*arguments: object) -> int:
    try:
        return label_next.main([*map(str, arguments), "--device", "cpu"])
    except SystemExit as error:  # argparse's answer to an option that is wrong
        return error.code


def names_in(output: Path) -> list[str]:
    return [Path(line).name for line in (output / "label_next.txt").read_text().splitlines()]


def test_list_page_and_labels_of_the_same_photos(checkpoint, photos, tmp_path, capfd):
    output = tmp_path / "out"
    words = ["--number", 5, "--output", output, "--score", 0.4, "--formats", "json,voc,yolo,cvat,labelme"]
    assert run(checkpoint, photos, *words) == 2
    shown = capfd.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"error: {photos}/broken.jpg: is damaged or truncated (")
    assert "5 photos to label next, of 9 without labels; left out: 0 labelled, 1 repeated, 1 damaged" in shown.out
    chosen = names_in(output)
    assert len(chosen) == 5
    assert not {"broken.jpg", "copy.jpg"} & set(chosen)
    assert len({"4.jpg", "mirrored.jpg"} & set(chosen)) < 2
    assert all(Path(line).is_file() for line in (output / "label_next.txt").read_text().splitlines())
    page = (output / "label_next.html").read_text()
    places = [page.index(f">{rank}. {name}: ") for rank, name in enumerate(chosen, start=1)]
    assert places == sorted(places)
    assert page.count("<img") == 5
    # As detect.py would label them.
    found = json.loads((output / "detections.json").read_text())
    assert [entry["name"] for entry in found] == chosen
    expected = Predictor.from_checkpoint(checkpoint, "cpu", score_thresh=0.4)([photos / name for name in chosen])
    for entry, detections in zip(found, expected, strict=True):
        assert [item["class"] for item in entry["objects"]] == detections.names
        np.testing.assert_allclose([item["score"] for item in entry["objects"]], detections.scores, atol=1e-4)
    for folder, suffix in (("Annotations", "xml"), ("labels", "txt"), ("labelme", "json")):
        assert {path.stem for path in (output / folder).glob(f"*.{suffix}")} == {Path(name).stem for name in chosen}
    assert (output / "annotations.xml").read_text().count("<image ") == 5


def test_labelled_photos_are_left_out(checkpoint, photos, tmp_path, capsys):
    """Named as a folder, as a list beside its photos, and as the list of an earlier call."""
    elsewhere = tmp_path / "labelled"
    elsewhere.mkdir()
    shutil.copy(photos / "0.jpg", elsewhere / "other name.jpg")
    write_picture(elsewhere / "again.png", read_photo(photos / "4.jpg"))  # other bytes
    (elsewhere / "done.txt").write_text("../photos/1.jpg\n\n", "utf-8-sig")  # with the mark of Windows' editor
    (photos / "broken.jpg").unlink()
    elsewhere.rename(tmp_path / "labelled.txt")  # a folder, whatever its name
    elsewhere = tmp_path / "labelled.txt"
    words = [checkpoint, photos, "--exclude", elsewhere, "--exclude", elsewhere / "done.txt"]
    assert run(*words, "--number", 2, "--output", tmp_path / "first") == 0
    first = names_in(tmp_path / "first")
    assert run(*words, "--exclude", tmp_path / "first/label_next.txt", "--output", tmp_path / "second") == 0
    second = names_in(tmp_path / "second")
    assert len(first) == 2
    assert sorted(Path(name).stem.replace("copy", "3") for name in first + second) == ["2", "3", "5", "6", "7"]
    assert run(*words, "--exclude", photos, "--output", tmp_path / "third") == 2
    assert "error: no photo is left to label; left out: 10 labelled, 0 repeated, 0 damaged" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_photos_of_the_run_are_left_out(checkpoint, shapes_root, tmp_path, capsys):
    state = load_checkpoint(checkpoint)
    sources = {part: [{"path": "shapes", "split": part}] for part in ("train", "val")}
    state.config.update(data={"classes": list(CLASSES), "root": str(shapes_root), **sources})
    save_checkpoint(tmp_path / "best.pt", state)
    photos = tmp_path / "photos"
    shutil.copytree(shapes_root / "shapes/JPEGImages", photos)
    new = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    write_picture(photos / "new.png", new)
    assert run(tmp_path / "best.pt", photos, "--output", tmp_path / "out") == 0
    assert names_in(tmp_path / "out") == ["new.png"]
    state.config["data"]["root"] = "/elsewhere"
    save_checkpoint(tmp_path / "best.pt", state)
    assert run(tmp_path / "best.pt", photos, "--number", 3, "--output", tmp_path / "other") == 0
    assert "note: the run's own photos cannot be read here (/elsewhere/shapes" in capsys.readouterr().err


def test_the_shipped_network_without_a_checkpoint(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run("photos/0.jpg", "photos/1.jpg", "--number", 9) == 0
    assert sorted(names_in(tmp_path / "runs/label_next-2")) == ["0.jpg", "1.jpg"]
    assert json.loads((tmp_path / "runs/label_next/coco.json").read_text())["images"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name, photos, tmp_path):
    options = ModelConfig.model_validate({"architecture": name, "pretrained": "none", "width": 0.1})
    model = build_network(3, options)
    config = {"model": options.model_dump(mode="json"), "data": {"tiles": {"size": 150, "overlap": 0.2}}}
    save_checkpoint(tmp_path / "a.pt", TrainState(model.state_dict(), ["cat", "dog"], IMAGENET.to_plain(), config))
    words = [tmp_path / "a.pt", photos / "0.jpg", photos / "1.jpg", photos / "2.jpg", "--output", tmp_path / "out"]
    assert run(*words, "--number", 2, "--batch-size", 3) == 0
    assert len(names_in(tmp_path / "out")) == 2


@pytest.mark.parametrize("place", ["find_candidates", "jpeg"])
def test_an_interrupted_command_leaves_nothing(place, checkpoint, photos, tmp_path, monkeypatch, capsys):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ssd.diagnostics.label_next.{place}", interrupt)
    assert run(checkpoint, photos, "--output", tmp_path / "out") == 130
    assert "stopped by SIGINT" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["half"], "half: name photos after the checkpoint"),
        (["half", "nowhere"], "nowhere: no such file"),
        (["half", "photos", "--exclude", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["half", "photos", "--exclude", "list.txt"], "error: list.txt, line 2: gone.jpg: no such file\n"),
        (["half", "photos", "--exclude", "empty"], "empty: contains no photos"),
        (["half", "photos", "--number", "0"], "--number"),
        (["half", "photos", "--output", "empty/file"], "empty/file: is a file; name a folder"),
        (["half", "photos/broken.jpg"], "no photo is left to label; left out: 0 labelled, 0 repeated, 1 damaged"),
    ],
)
def test_wrong_arguments_are_explained(words, said, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/file").touch()
    (tmp_path / "list.txt").write_text("photos/0.jpg\ngone.jpg\n")
    assert run(*words) == 2
    assert said in capsys.readouterr().err


def test_names_that_are_not_utf8(checkpoint, photos, tmp_path):
    odd = os.fsencode(photos) + b"/\xff.jpg"
    os.rename(photos / "0.jpg", odd)
    assert run(checkpoint, os.fsdecode(odd), "--output", tmp_path / "out") == 0
    assert (tmp_path / "out/label_next.txt").read_bytes() == odd + b"\n"
    assert "\\xff.jpg" in (tmp_path / "out/label_next.html").read_text()
