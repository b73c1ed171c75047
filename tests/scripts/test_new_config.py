import json
import shutil
from pathlib import Path

import pytest

import train
from data.photos import load_photos
from data.shapes import CLASSES
from scripts import new_config
from ssd.config_file import load_config
from tests.data.layouts.test_formats import as_coco, copy_photos, load, write_yolo


@pytest.fixture
def folders(shapes_root, tmp_path):
    """The same photos as VOC, COCO and YOLO, none with splits."""
    voc = load(shapes_root, "shapes", "trainval")
    shutil.copytree(shapes_root / "shapes", tmp_path / "voc")
    shutil.rmtree(tmp_path / "voc/ImageSets")
    copy_photos(voc, tmp_path / "coco/images")
    (tmp_path / "coco/all.json").write_text(json.dumps(as_coco(voc)))
    write_yolo(voc, tmp_path / "yolo/images", tmp_path / "yolo/labels")
    (tmp_path / "yolo/classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_a_folder_of_any_layout_trains(folders, kind, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    output = folders / f"{kind}.yaml"
    assert new_config.main([kind, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert f"{kind.upper()} layout" in shown
    config = load_config(output)
    assert sorted(config.data.class_names) == sorted(CLASSES)
    assert config.data.root == "."
    small = ["train.epochs=null", "train.iterations=1", "model.width=0.1", "train.batch_size=2", "data.workers=0"]
    assert train.main(["--config", str(output), *small, f"output_dir={folders / 'run'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("mAP@0.5 (VOC10 area)")


def test_splits_are_taken_as_they_are(shapes_root, tmp_path):
    assert new_config.main([str(shapes_root / "shapes"), "--output", str(tmp_path / "a.yaml")]) == 0
    config = load_config(tmp_path / "a.yaml")
    assert (config.data.train[0].split, config.data.val[0].split) == ("train", "val")
    assert config.data.train[0].val_fraction is None


def test_what_cannot_be_used_is_told(folders, capsys):
    (folders / "empty").mkdir()
    for name, said in (("none", "no such folder"), ("empty", "is of no known layout")):
        assert new_config.main([str(folders / name), "--output", str(folders / "a.yaml")]) == 2
        assert said in capsys.readouterr().err
    (folders / "voc/JPEGImages/000000.jpg").write_bytes(b"x")
    assert new_config.main([str(folders / "voc"), "--output", str(folders / "a.yaml")]) == 2
    assert "000000.jpg: is no image" in capsys.readouterr().err
    assert not (folders / "a.yaml").exists()
    (folders / "a.yaml").write_text("mine")
    assert new_config.main([str(folders / "yolo"), "--output", str(folders / "a.yaml")]) == 2
    assert (folders / "a.yaml").read_text() == "mine"


def test_a_test_split_is_never_divided(shapes_root, tmp_path, capsys):
    shutil.copytree(shapes_root / "shapes", tmp_path / "shapes")
    for name in ("train", "trainval"):
        (tmp_path / f"shapes/ImageSets/Main/{name}.txt").unlink()
    (tmp_path / "shapes/ImageSets/Main/val.txt").rename(tmp_path / "shapes/ImageSets/Main/Test.txt")
    assert new_config.main([str(tmp_path / "shapes"), "--output", str(tmp_path / "a.yaml")]) == 2
    assert "has the splits Test, but no pair to train and to evaluate on" in capsys.readouterr().err


def test_a_train_split_alone_is_divided(shapes_root, tmp_path):
    shutil.copytree(shapes_root / "shapes", tmp_path / "shapes")
    for name in ("val", "trainval"):
        (tmp_path / f"shapes/ImageSets/Main/{name}.txt").unlink()
    assert new_config.main([str(tmp_path / "shapes"), "--output", str(tmp_path / "a.yaml")]) == 0
    data = load_config(tmp_path / "a.yaml").data
    names = [
        {photos.path(i) for i in range(len(photos))}
        for photos in (load_photos(part, data.root, data.class_names).photos for part in (data.train, data.val))
    ]
    listed = (tmp_path / "shapes/ImageSets/Main/train.txt").read_text().split()
    assert {Path(name).stem for name in names[0] | names[1]} == set(listed)
    assert not names[0] & names[1]
