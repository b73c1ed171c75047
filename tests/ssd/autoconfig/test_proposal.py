"""The proposed configuration: what it says, and which data it refuses."""

import re
import shutil
from io import StringIO
from pathlib import Path

import pytest
import yaml

from data.dataset.annotation_loader import load_annotations
from ssd.autoconfig import proposal
from ssd.config.file import load_config
from ssd.system.machine import num_cores
from tests.helpers.annotations import square_objects
from tests.helpers.exports import SHOTS, coco, coco_file, dump, photos, texts, write, xml, xmls


def test_only_the_first_of_many_faults_are_reported(tmp_path, proposed):
    shots = [shot._replace(objects=((0, 5, 5, 9, 9),) * 9) for shot in SHOTS]
    photos(tmp_path / "mine/train", shots)
    xmls(tmp_path / "mine/train", shots)
    for path in (tmp_path / "mine/train").glob("*.xml"):
        path.write_text(path.read_text().replace("bndbox", "robndbox"))  # as roLabelImg writes rotated boxes
    photos(tmp_path / "mine/val")
    xmls(tmp_path / "mine/val")
    lines = proposed(tmp_path / "mine", code=2).splitlines()
    assert len(lines) == 51
    assert "object 1 (cat): has a rotated box (angle missing), but SSD needs upright ones" in lines[0]
    assert lines[-1] == "error: ... and 40 more faults"


def no_category(folder: Path) -> None:
    content = coco()
    for item in content["annotations"]:
        item["category_id"] = 44
    dump(folder / "a.json", content)


def no_xml(folder: Path) -> None:
    for shot in SHOTS:
        write(folder / f"annots/{shot.name}.xml", xml(shot, f"{shot.name}.jpg").replace("</object>", "<object>"))


def no_name(folder: Path) -> None:
    texts(folder / "labels", first=7)
    write(folder / "data.yaml", "names: [cat]")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_category, r"a\.json: annotation \d+ of photo-0\d\.jpg: category_id 44 is in no category"),
        (no_xml, r"photo-0\d\.xml: is not valid XML"),
        (no_name, r"photo-0\d\.txt: line 1: class \d has no name; known: 0 cat"),
    ],
)
def test_if_no_file_is_readable_the_first_faults_are_reported(tmp_path, make, message, proposed):
    photos(tmp_path / "mine/images")
    make(tmp_path / "mine")
    errors = proposed(tmp_path / "mine", code=2)
    assert re.search(message, errors)
    assert "no object was found" not in errors


@pytest.mark.parametrize(("name", "message"), [("background", "'background' is added automatically"), ("", "expected text")])
def test_an_invalid_class_name_is_refused_before_timing(tmp_path, name, message, proposed, monkeypatch):
    monkeypatch.setattr(proposal, "try_out", lambda *_: pytest.fail("timed"))
    content = coco()
    content["categories"][1]["name"] = name
    coco_file(tmp_path / "mine", content)
    (line,) = proposed(tmp_path / "mine", code=2).splitlines()
    count = sum(label == 1 for shot in SHOTS for label, *_ in shot.objects)
    assert line.startswith(f"error: {tmp_path / 'mine'}: class {name!r}, of {count} object(s): {message}")
    assert line.endswith("; rename it in the annotations")


def test_a_class_found_only_in_test_photos_is_reported(tmp_path, proposed):
    for part, label in (("train", 0), ("val", 0), ("test", 1)):
        shots = [shot._replace(objects=((label, 5, 5, 29, 29),)) for shot in SHOTS]
        photos(tmp_path / "mine" / part, shots)
        xmls(tmp_path / "mine" / part, shots)
    expected = "note: no object of class dog is in data.train or data.val, but in another split alone"
    assert expected in proposed(tmp_path / "mine")


def test_existing_splits_are_used(shapes_root, tmp_path, proposed):
    proposed(shapes_root / "shapes")
    config = load_config(tmp_path / "a.yaml")
    assert (config.data.train[0].split, config.data.val[0].split) == ("train", "val")
    assert config.data.train[0].val_fraction is None


def test_unusable_data_is_reported(folders, proposed):
    (folders / "empty").mkdir()
    for name, message in (("none", "no such folder"), ("empty", "unknown dataset format")):
        assert message in proposed(folders / name, code=2)
    for number in range(3):
        (folders / f"voc/JPEGImages/{number:06}.jpg").write_bytes(b"x")
    assert "000000.jpg: is not a supported image" in proposed(folders / "voc", code=2)
    assert not (folders / "a.yaml").exists()
    (folders / "a.yaml").write_text("mine")
    proposed(folders / "yolo", code=2)
    assert (folders / "a.yaml").read_text() == "mine"


def test_a_test_split_is_never_divided(shapes_root, tmp_path, proposed):
    shutil.copytree(shapes_root / "shapes", tmp_path / "shapes")
    for name in ("train", "trainval"):
        (tmp_path / f"shapes/ImageSets/Main/{name}.txt").unlink()
    (tmp_path / "shapes/ImageSets/Main/val.txt").rename(tmp_path / "shapes/ImageSets/Main/Test.txt")
    assert "has the splits Test, but no pair for training and evaluation" in proposed(tmp_path / "shapes", code=2)


def test_a_lone_train_split_is_divided(shapes_root, tmp_path, proposed):
    shutil.copytree(shapes_root / "shapes", tmp_path / "shapes")
    for name in ("val", "trainval"):
        (tmp_path / f"shapes/ImageSets/Main/{name}.txt").unlink()
    proposed(tmp_path / "shapes")
    data = load_config(tmp_path / "a.yaml").data
    parts = [load_annotations(data, part).photos for part in ("train", "val")]
    names = [Path(photos.path(i)).stem for photos in parts for i in range(len(photos))]
    assert sorted(names) == sorted((tmp_path / "shapes/ImageSets/Main/train.txt").read_text().split())  # each once


def test_a_few_damaged_photos_are_left_out_and_reported(shapes_root, tmp_path, proposed):
    """By name, and only once if both splits have the photo."""
    folder = tmp_path / "mine"
    shutil.copytree(shapes_root / "shapes", folder)
    train_list, val_list = (folder / f"ImageSets/Main/{split}.txt" for split in ("train", "val"))
    name = train_list.read_text().split()[0]
    val_list.write_text(val_list.read_text() + train_list.read_text())
    (folder / f"JPEGImages/{name}.jpg").write_bytes(b"x")
    out = proposed(folder)
    assert out.count(f"{name}.jpg: is not a supported image") == 1
    for split in ("train", "val"):
        assert re.search(rf"^note: data.{split}: 1 of \d+ photos cannot be read and were left out", out, re.MULTILINE)
    assert load_config(tmp_path / "a.yaml").data.damaged == "skip"
    assert re.search(r"damaged: skip +# 2 photos cannot be read\n", (tmp_path / "a.yaml").read_text())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_file_gives_the_reasons_for_its_settings(folders, monkeypatch, device, proposed):
    monkeypatch.setattr("torch.cuda.is_available", lambda: device == "cuda")
    output = folders / "a.yaml"
    proposed(folders / "voc")
    config, lines = load_config(output), output.read_text().splitlines()
    assert (config.model.pretrained, config.model.width) == ("none", 1.0 if device == "cuda" else 0.25)
    assert config.loss.min_neg == 3
    assert config.data.cache == "ram"
    assert (config.eval.every, config.eval.metric) == (config.checkpoint.every, "voc10")
    for line in lines:
        if line.startswith("  ") and not re.match("  (classes|root|train|val):", line):
            assert " # " in line, line
    assert not any(key in output.read_text() for key in ("null", "seed", "jaccard", "mirror"))


ODD_NAMES = [
    "no", "1e3", "007", "1.10", "null", "~", "yes", "2020-01-01", "a: b", "x #y", "- z", "[k]", "US$5", "猫", "it's", '"',
    "a, b",
]  # fmt: skip


def test_class_names_are_unchanged(folders, monkeypatch, proposed):
    """The configuration has the class names of the annotations."""
    paths = sorted((folders / "voc/Annotations").glob("*.xml"))
    for number, path in enumerate(paths):
        path.write_text(re.sub("<name>.*?</name>", f"<name>{ODD_NAMES[number % len(ODD_NAMES)]}</name>", path.read_text()))
    for _ in range(2):
        proposed(folders / "voc", "--overwrite")
        assert set(load_config(folders / "a.yaml").data.class_names) == set(ODD_NAMES)
        assert set(yaml.safe_load((folders / "a.yaml").read_text())["data"]["classes"]) == set(ODD_NAMES)
        monkeypatch.setattr(proposal, "WIDTH", 20)  # now with one name per line


def test_photos_are_cached_in_memory_only_if_they_fit(monkeypatch):
    photos = square_objects(150)
    for free, cached in ((4 * 270_000 + 4, True), (4 * 270_000 - 4, False)):
        monkeypatch.setattr(proposal, "free_memory", lambda free=free: free)
        assert ("data.cache" in proposal.cache_setting(photos, "cpu", 300)) == cached


def test_photos_are_read_in_parallel_with_a_progress_bar(folders, monkeypatch, proposed):
    given = {}

    def read(*arguments, workers, progress, **options):
        given["workers"] = workers
        progress(10, 40)
        progress(40, 40)
        return load_annotations(*arguments, **options)

    bars = []

    class Bar(proposal.tqdm):
        def __init__(self, desc, disable, **options):
            assert disable is None  # a bar on a terminal, nothing in a log file
            super().__init__(desc=desc, file=StringIO(), **options)
            bars.append(self)

    monkeypatch.setattr(proposal, "load_annotations", read)
    monkeypatch.setattr(proposal, "tqdm", Bar)
    proposed(folders / "voc")
    assert given["workers"] == num_cores()
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == [
        ("counting objects", 32, 32), ("reading train", 40, 40), ("reading val", 40, 40)
    ]  # fmt: skip
