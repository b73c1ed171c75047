"""The list and the picture of duplicates."""

import shutil

import cv2
import numpy as np
import pytest

from scripts import check_data
from ssd.system.images import read_photo
from tests.helpers.paths import ROOT


@pytest.fixture
def leaking(tmp_path):
    """A data set whose validation photos have a copy and a scaled copy in training, one of them with another box."""
    photos = ROOT / "tests/photos"
    placed = {"train": ("astronaut", "cat"), "val": ("astronaut", "cat", "photographer")}
    for split, names in placed.items():
        folder = tmp_path / "mine" / split
        folder.mkdir(parents=True)
        for name in names:
            shutil.copy(photos / f"{name}.jpg", folder / f"{name}_{split}.jpg")
            left = 20 if (split, name) == ("val", "astronaut") else 100
            box = f"<xmin>{left}</xmin><ymin>10</ymin><xmax>{left + 100}</xmax><ymax>200</ymax>"
            (folder / f"{name}_{split}.xml").write_text(
                f"<annotation><object><name>thing</name><bndbox>{box}</bndbox></object></annotation>"
            )
    small = tmp_path / "mine/train/cat_train.jpg"
    image = cv2.imread(str(small))
    cv2.imwrite(str(small), cv2.resize(image, None, fx=0.8, fy=0.8))
    config = tmp_path / "mine.yaml"
    sources = "\n".join(f"  {split}: [{{path: mine, split: {split}}}]" for split in placed)
    config.write_text(f"output_dir: {tmp_path}/out\ndata:\n  root: {tmp_path}\n  classes: [thing]\n{sources}\n")
    return config


def test_relatives_across_splits_are_listed_and_drawn(leaking, tmp_path, capsys):
    assert check_data.main([str(leaking)]) == 0
    printed = capsys.readouterr().out
    assert "warning: 2 of 3 photos of data.val belong to photos of data.train: mAP will be too high" in printed
    assert "astronaut_val.jpg equals " in printed
    assert "cat_val.jpg is like (1.00) " in printed
    assert "1 photos have other boxes than an equal or nearly equal photo; check their labels" in printed
    assert "1 object(s) only in the first (thing); 1 object(s) only in the second (thing)" in printed
    picture = read_photo(tmp_path / "out/duplicates.png")
    assert picture.shape[0] == 2 * (24 + 240 + 4)  # two pairs


def test_without_duplicates_nothing_is_written(leaking, tmp_path, capsys):
    for name in ("astronaut", "cat"):
        (tmp_path / f"mine/val/{name}_val.jpg").unlink()
        (tmp_path / f"mine/val/{name}_val.xml").unlink()
    assert check_data.main([str(leaking)]) == 0
    assert "no faults" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def place(folder, name, image, left):
    """Write a photo with a box 40 pixels wide."""
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{name}.png"), image)
    box = f"<xmin>{left + 1}</xmin><ymin>1</ymin><xmax>{left + 40}</xmax><ymax>{image.shape[0]}</ymax>"
    (folder / f"{name}.xml").write_text(f"<annotation><object><name>thing</name><bndbox>{box}</bndbox></object></annotation>")


def test_boxes_of_mirrored_copies_do_not_disagree(leaking, tmp_path, capsys):
    image = cv2.rotate(cv2.imread(str(ROOT / "tests/photos/photographer.jpg")), cv2.ROTATE_90_CLOCKWISE)
    place(tmp_path / "mine/train", "one", image, 20)
    place(tmp_path / "mine/train", "one_flip", image[:, ::-1], image.shape[1] - 60)
    assert check_data.main([str(leaking)]) == 0
    printed = capsys.readouterr().out
    assert "one_flip.png is like (1.00) " in printed
    assert printed.count("object(s) only in the first") == 1  # the astronaut


def test_strips_are_drawn_at_a_limited_width(leaking, tmp_path, capsys):
    strip = np.random.default_rng(0).integers(0, 256, (2, 8000, 3), dtype=np.uint8)
    for name in ("one", "other"):
        place(tmp_path / "mine/train", name, strip, 100)
    assert check_data.main([str(leaking)]) == 0
    assert read_photo(tmp_path / "out/duplicates.png").shape[1] == 2 * (640 + 4)
