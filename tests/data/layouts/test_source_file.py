"""Files named instead of a data set's folder."""

import re
import time

import pytest

from data.dataset.errors import DataError
from tests.helpers.annotations import load
from tests.helpers.exports import NAMES, SHOTS, coco, dump, kangaroo, labelimg_yolo, numbers_of, photos, texts, write

LIST = f"[{', '.join(NAMES)}]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.zip", "is an archive; unpack it, and name the folder with its files"),
        ("mine.tar.gz", "is an archive; unpack it"),
        ("clip.mp4", "is a file; name the folder"),
        ("notes.csv", "is a file; name the folder"),
        ("photo-01.jpg", "is a file; name the folder"),
        ("annots/photo-01.xml", "is a file; name the folder"),
        ("notes", "is a file; name the folder"),
        ("notes.yaml", "is not a data.yaml of YOLO, since it has no names"),
        ("notes.json", "is not valid JSON"),
    ],
)
def test_any_other_file_is_refused(tmp_path, name, message, proposed):
    kangaroo(tmp_path / "mine")
    photos(tmp_path / "mine")
    path = tmp_path / "mine" / name
    if not path.exists():
        write(path, "a: 1\n")
    assert f"{path}: {message}" in proposed(path, code=2)
    with pytest.raises(DataError, match=re.escape(message)):
        load(tmp_path / f"mine/{name}", classes=NAMES)


def test_a_named_coco_file_takes_precedence_over_other_data(tmp_path):
    kangaroo(tmp_path / "mine")
    dump(tmp_path / "mine/some.json", coco(SHOTS[:4]))
    assert numbers_of(load(tmp_path / "mine/some.json", classes=NAMES)) == {0, 1, 2, 3}
    with pytest.raises(DataError, match=r"some\.json: is a COCO file, but data\.format is voc"):
        load(tmp_path / "mine/some.json", classes=NAMES, format="voc")


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("sets/data.yaml", "path: ../mine\ntrain: images/train\nval: images/val"),
        ("sets/data.yaml", "path: mine\ntrain: images/train\nval: images/val"),  # from the working directory
        ("sets/data.yaml", "path: {root}/mine\ntrain: images/train\nval: images/val"),
        ("sets/data.yaml", "train: {root}/mine/images/train\nval: {root}/mine/images/val"),
        ("sets/data.yaml", "train: ../mine/images/train\nval: ../mine/images/val"),
        ("mine/data.yml", "train: images/train\nval: images/val"),
        ("mine/data.yaml", "path: ../datasets/mine\ntrain: images/train\nval: images/val"),  # moved with its photos
        ("mine/data.yaml", "train: ../images/train\nval: ../images/val\npath: null"),
    ],
)
def test_the_path_in_data_yaml_is_followed(tmp_path, file, entries, monkeypatch):
    """Another data set beside it, or another data.yaml at the path, is ignored."""
    monkeypatch.chdir(tmp_path)
    for part, shots in (("train", SHOTS[:7]), ("val", SHOTS[7:])):
        photos(tmp_path / f"mine/images/{part}", shots)
        texts(tmp_path / f"mine/labels/{part}", shots)
    if not file.startswith("mine"):
        labelimg_yolo(tmp_path / "sets")
    write(tmp_path / "mine/a.yaml", f"names: {LIST}\ntrain: images/val\n")
    write(tmp_path / file, entries.replace("{root}", str(tmp_path)) + f"\nnames: {LIST}\n")
    for split, numbers in (("train", set(range(7))), ("val", {7, 8, 9})):
        loaded = load(tmp_path / file, split, NAMES)
        assert numbers_of(loaded) == numbers
        assert len(loaded.photos.labels) == sum(len(SHOTS[number].objects) for number in numbers)
    (tmp_path / f"mine/labels/val/{SHOTS[9].name}.txt").unlink()  # invalidates the cache
    changed = load(tmp_path / file, "val", NAMES).photos
    assert len(changed.labels) == len(loaded.photos.labels) - len(SHOTS[9].objects)


def test_a_data_yaml_with_a_missing_path_is_refused(tmp_path, proposed):
    labelimg_yolo(tmp_path / "sets")
    path = write(tmp_path / "sets/data.yaml", f"path: ../nowhere\ntrain: images/train\nnames: {LIST}\n")
    assert f"{path}: path: ../nowhere: no such folder, from {path.parent} or from " in proposed(path, code=2)
    write(path, f"path: ~nobody-here/sets\ntrain: images/train\nnames: {LIST}\n")
    assert f"{path}: path: ~nobody-here/sets: no such folder" in proposed(path, code=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{f'*a{i}, ' * 9}]\n" for i in range(30)), "more than 100,000 values"),
        ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(3000)), "nested too deep"),
        (f"a: {'[' * 5000}{']' * 5000}\n", "nested too deep"),
        ("a: &a [*a]\n", "an alias refers to a node that contains it"),
    ],
)
def test_data_yaml_has_the_limits_of_configurations(tmp_path, text, message, proposed):
    labelimg_yolo(tmp_path / "mine")
    path = write(tmp_path / "mine/data.yaml", f"names: {LIST}\n{text}")
    began = time.monotonic()
    for named in (path, path.parent):
        assert re.search(f"data.yaml: cannot be read .*{message}", proposed(named, code=2))
    assert time.monotonic() - began < 20
