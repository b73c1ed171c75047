"""Splits that YOLO's lists and data.yaml name."""

import re

import pytest

from tests.helpers.annotations import load
from tests.helpers.exports import NAMES, SHOTS, numbers_of, photos, texts, write


def divided(folder):
    photos(folder / "images")
    texts(folder / "labels")
    write(folder / "classes.txt", "\n".join(NAMES))
    for name, shots in (("train", SHOTS[:6]), ("val", SHOTS[6:])):
        write(folder / f"{name}.txt", "".join(f"images/{shot.name}.jpg\n" for shot in shots))
    return folder


def test_missing_photos_in_lists_are_counted(tmp_path):
    folder = divided(tmp_path / "mine")
    write(folder / "train.txt", "".join(f"images/photo-{number:02d}.jpg\n" for number in (0, 1, 2, 3, 77, 78)))
    loaded = load(folder, "train")
    assert numbers_of(loaded) == {0, 1, 2, 3}
    assert loaded.notes == (
        f"{folder}/train.txt: 2 of 6 lines do not name a photo and were left out",
        f"{folder}: 2 photos with labels belong to no split and were left out",
    )


def test_a_list_of_missing_photos_is_refused(tmp_path, proposed):
    folder = divided(tmp_path / "mine")
    write(folder / "val.txt", "images/photo-06.png\nimages/photo-07.png\n")
    (line,) = proposed(folder, code=2).splitlines()
    assert "val.txt: none of its 2 lines names a photo (images/photo-06.png, ...); fix or remove the file" in line
    assert numbers_of(load(folder, "train")) == set(range(6))


@pytest.mark.parametrize("entry", ["vall/images", "vall.txt", "[val/images, vall/images]"])
def test_a_missing_folder_in_data_yaml_is_refused(tmp_path, entry, proposed):
    folder = tmp_path / "mine"
    for part, shots in (("train", SHOTS[:6]), ("val", SHOTS[6:])):
        photos(folder / part / "images", shots)
        texts(folder / part / "labels", shots)
    write(folder / "data.yaml", f"train: train/images\nval: {entry}\ntest: test/images\nnames: [{', '.join(NAMES)}]\n")
    (line,) = proposed(folder, code=2).splitlines()
    assert re.search(r"data\.yaml: val: vall(/images|\.txt): no such folder or list of photos; fix or remove the entry", line)
    write(folder / "data.yaml", f"train: train/images\nval: val/images\ntest: test/images\nnames: [{', '.join(NAMES)}]\n")
    assert "6 photos to train on, 4 to evaluate on" in proposed(folder)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("{mine}/images/train", "{mine}/images/val"),
        ("/home/someone/dev/test/mine/images/train", "/home/someone/dev/test/mine/images/val"),
        ("C:\\Users\\me\\dev\\mine\\images\\train", "C:\\Users\\me\\dev\\mine\\images\\val"),
    ],
)
def test_absolute_paths_are_found_below_any_folder(tmp_path, train, val):
    folder = tmp_path / "dev/eval/mine"
    for part, shots in (("train", SHOTS[:7]), ("val", SHOTS[7:])):
        photos(folder / f"images/{part}", shots)
        texts(folder / f"labels/{part}", shots)
    content = f"train: {train}\nval: {val}\nnames: [{', '.join(NAMES)}]\n".replace("{mine}", str(folder))
    write(folder / "data.yaml", content)
    assert numbers_of(load(folder, "train")) == set(range(7))
    assert numbers_of(load(folder, "val")) == {7, 8, 9}


@pytest.mark.parametrize(
    "entries",
    [
        "train: images\nval: images\ntest: test/images",
        "train: images\nval: images\ntest: null",
        "train: images\nval: null\ntest: ~",
        "train: ../images\nval: ../valid/images\ntest: ../test/images",  # Roboflow always writes all three
        "train: images\nval: val.txt",
    ],
)
def test_photos_are_divided_if_the_named_splits_are_empty(tmp_path, entries, proposed):
    photos(tmp_path / "mine/images")
    texts(tmp_path / "mine/labels")
    write(tmp_path / "mine/val.txt", "")
    write(tmp_path / "mine/data.yaml", f"{entries}\nnames: [{', '.join(NAMES)}]\n")
    shown = proposed(tmp_path / "mine")
    counts = re.search(r"(\d+) photos to train on, (\d+) to evaluate on", shown)
    assert counts is not None
    assert int(counts[1]) + int(counts[2]) == len(SHOTS)
    assert ("no such folder" in shown) == ("valid" in entries)
