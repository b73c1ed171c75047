"""Which photos stay on one side of a split."""

import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from data.dataset import groups
from data.dataset.annotation_loader import LoadedAnnotations, load_annotations
from data.dataset.annotations import Annotations
from data.dataset.errors import DataError
from data.dataset.groups import group_photos, mixed_pairs, mixed_warning, names_within
from data.dataset.images import captured
from data.dataset.similar import SIDE
from ssd.config.schema import DataConfig, SourceConfig
from tests.helpers.annotations import load, load_sources

RNG = np.random.default_rng(0)


def unlike(count: int) -> Annotations:
    """Return photos that have nothing in common, with one object each."""
    return Annotations(
        ("cat",), np.array([f"{i}.jpg".encode() for i in range(count)]), np.full((count, 2), 100, np.int32),
        np.arange(count + 1), np.tile(np.array([[10, 10, 50, 50]], np.float32), (count, 1)), np.zeros(count, np.int64),
        np.zeros(count, bool), np.full(count, -1, np.int8), np.arange(count),
        RNG.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8), np.zeros((count, 2), np.int64),
    )  # fmt: skip


def joined(names: list[str], rule: str = "auto", photos: Annotations | None = None) -> list[set[str]]:
    """Return the groups of more than one photo."""
    labels = group_photos(names, photos or unlike(len(names)), rule).of_photo
    found = [{names[i] for i in np.flatnonzero(labels == label)} for label in dict.fromkeys(labels.tolist())]
    return [group for group in found if len(group) > 1]


OTHERS = ["x1", "y", "street", "IMG_4711", "IMG_4712", "000005", "000006"]


@pytest.mark.parametrize(
    "names",
    [
        ["cat_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9", "cat_jpg.rf.ffffffffffffffffffffffffffffffff"],
        ["walk_mp4-12_jpg.rf.0a1b2c3d4e5f6071", "walk_mp4-12_jpg.rf.aaaaaaaaaaaaaaaa", "walk_mp4-340_jpg.rf.bbbbbbbbbbbbbbbb"],
        ["cat", "cat_aug1", "cat-augmented_22", "cat_flip", "cat_rot90", "cat_hflip"],
        ["cat", "cat (2)", "cat - Kopie", "cat - Copy (3)"],
        ["film/frame_0001", "film/frame_0002", "film/frame_0400"],
        ["walk_frame12", "walk_frame_13"],
        ["cat", "cat_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9"],
        ["frame_0001_jpg.rf.0a1b2c3d4e5f6071", "frame_0002_png.rf.aaaaaaaaaaaaaaaa"],
    ],
    ids=["roboflow", "roboflow video", "augmented", "copies", "frames", "frames of one file", "original", "roboflow frames"],
)
def test_names_tell_what_belongs_together(names):
    assert joined([*names, *OTHERS]) == [set(names)]
    assert joined([*names, *OTHERS], "none") == []


@pytest.mark.parametrize(
    "names",
    [
        [f"image ({number})" for number in range(1, 9)],  # renamed by Windows: no photo is called "image"
        [f"raccoon-{number}" for number in range(9)],
        ["cat/1", "cat/2", "dog/1", "dog/2"],
        ["copy", "copy2", "frameless", "aug"],
        [f"field_crop_{number}" for number in range(30)],  # more than copies of one photo
    ],
)
def test_other_names_tell_nothing(names):
    assert joined(names) == []


def test_numbered_photos_are_a_film_if_neighbours_look_similar():
    names = [f"cam{camera}_{number:04}" for camera in (1, 2) for number in range(10)]
    photos = unlike(20)
    scene = photos.thumbnails[:1].astype(float)
    noise = np.random.default_rng(1).normal(0, 60, (10, SIDE, SIDE))
    photos.thumbnails[:10] = np.clip(scene + noise, 0, 255)  # similar to 0.6 or so, less than two photos that look alike
    assert joined(names, photos=photos) == [set(names[:10])]


def test_exported_names_are_numbered_like_their_originals():
    names = [f"cam_{number:04}_jpg.rf.{number:032x}" for number in range(10)]
    photos = unlike(20)
    noise = np.random.default_rng(1).normal(0, 60, (10, SIDE, SIDE))
    photos.thumbnails[:10] = np.clip(photos.thumbnails[:1] + noise, 0, 255)
    assert joined([*names, *"abcdefghij"], photos=photos) == [set(names)]


def test_photos_of_one_camera_within_seconds_belong_together():
    photos = unlike(6)
    photos.captured[:] = [(7, 100), (7, 102), (8, 103), (7, 105), (7, 300), (0, 0)]
    assert joined(list("abcdef"), photos=photos) == [{"a", "b", "d"}]


def test_equal_files_belong_together():
    photos = replace(unlike(4), contents=np.array([5, 6, 5, 7]))
    assert joined(list("abcd"), photos=photos) == [{"a", "c"}]


def test_many_folders_are_groups_unless_they_are_classes():
    names = [f"patient{folder}/{letter}" for folder in range(6) for letter in "abc"]
    assert joined(names) == [{f"patient{folder}/{letter}" for letter in "abc"} for folder in range(6)]
    photos = unlike(18)
    by_class = replace(photos, classes=tuple("abcdef"), labels=np.arange(18) // 3)
    assert joined(names, photos=by_class) == []
    assert joined(names[:12]) == []  # four folders are few
    assert len(joined(names[:12], "folder")) == 4


def test_an_expression_names_groups():
    names = ["2024_a_1", "2024_b_2", "2025_a_3", "other"]
    assert joined(names, r"_([ab])_") == [{"2024_a_1", "2025_a_3"}]
    assert joined(names, r"^\d+") == [{"2024_a_1", "2024_b_2"}]


def test_a_single_film_is_divided_into_consecutive_blocks():
    names = [f"frame_{number}" for number in range(100)]  # in the order of numbers, not of letters
    names[50] = "frame_49_aug1"
    found = joined(names)
    assert len(found) == groups.NUM_BLOCKS
    numbers = [sorted(int(re.findall(r"\d+", name)[0]) for name in group) for group in found]
    assert all(each[-1] - each[0] <= 6 for each in numbers)
    assert any({"frame_49", "frame_49_aug1"} <= group for group in found)  # a copy stays with its photo


def test_split_folders_do_not_separate_relatives(tmp_path):
    photos = unlike(3)
    names = ["train/images/a_jpg.rf.0123456789", "valid/images/a_jpg.rf.abcdef0123", "valid/images/b"]
    paths = np.array([f"{tmp_path}/{name}.jpg".encode() for name in names])
    train, val = (replace(photos, paths=paths).select(rows) for rows in ([0], [1, 2]))
    assert names_within(tmp_path, val) == ["images/a_jpg.rf.abcdef0123", "images/b"]
    assert mixed_pairs(train, val, "auto") == [(0, 0)]
    (warning,) = mixed_warning(train, val)
    assert warning.startswith("warning: 1 of 2 photos of data.val are copies or neighbours of photos of data.train (")
    assert mixed_warning(train, val.select([1])) == []


@pytest.fixture
def copied(tmp_path):
    """Ten photos of noise, each with a copy of other size and quality."""
    folder = tmp_path / "mine"
    folder.mkdir()
    box = "<bndbox><xmin>10</xmin><ymin>10</ymin><xmax>50</xmax><ymax>50</ymax></bndbox>"
    for number in range(10):
        image = cv2.resize(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
        for name, pixels in ((f"a{number}", image), (f"z{9 - number}", cv2.resize(image, (120, 90)))):
            cv2.imwrite(str(folder / f"{name}.jpg"), pixels)
            (folder / f"{name}.xml").write_text(f"<annotation><object><name>cat</name>{box}</object></annotation>")
    return folder


def test_copies_stay_on_one_side_when_a_folder_is_divided(copied):
    train, val = (load(copied, part, val_fraction=0.3, part=part) for part in ("train", "val"))
    sides = [{photos.path(i)[-6:-4] for i in range(len(photos))} for photos in (train.photos, val.photos)]
    for names in sides:
        assert {f"z{9 - int(name[1])}" for name in names if name[0] == "a"} == {name for name in names if name[0] == "z"}
    assert 2 <= len(val.photos) <= 10
    assert "20 photos form 10 groups: 10 look alike" in train.notes[0]
    assert val.notes == ()
    alone = load(copied, "val", val_fraction=0.3, group_by="none").photos
    assert {alone.path(i)[-6] for i in range(len(alone))} == {"a", "z"}
    with pytest.raises(DataError, match=r"20 photos of one group \(data.group_by\) cannot be divided"):
        load(copied, "val", val_fraction=0.3, group_by="folder")


def paths_of(loaded: LoadedAnnotations) -> list[str]:
    return [loaded.photos.path(i) for i in range(len(loaded.photos))]


@pytest.mark.parametrize("val_fraction", [None, 0.3])
def test_each_photo_is_in_one_validation_fold_with_its_copies(copied, val_fraction):
    """A folder with val_fraction is used whole."""
    split, validated = "train" if val_fraction else "all", []
    for number in (1, 2, 3):
        for _ in range(2):  # the second time from the cache
            train, val = (
                load(copied, split, val_fraction=val_fraction, part=part, fold=f"{number}/3") for part in ("train", "val")
            )
        here, others = ([path[-6:-4] for path in paths_of(part)] for part in (val, train))
        assert len(here) + len(others) == len({*here, *others}) == 20
        for names in (here, others):
            assert {f"z{9 - int(name[1])}" for name in names if name[0] == "a"} == {name for name in names if name[0] == "z"}
        assert train.notes[0].startswith("20 photos form 10 groups: 10 look alike")
        assert train.notes[1] == f"fold {number} of 3: {len(here)} photos to evaluate on; data.val is not used"
        assert val.notes == ()
        validated += here
    assert len(validated) == len(set(validated)) == 20
    few = load(copied, split, val_fraction=val_fraction, fold="3/3", fraction=0.5)
    assert set(paths_of(few)) < set(paths_of(train))
    whole = load(copied, split, val_fraction=val_fraction, fold="3/3", fraction=0.5, part="val")
    assert paths_of(whole) == paths_of(val)
    with pytest.raises(
        DataError, match=r"data.train: 20 photos in 10 groups \(data.group_by\) cannot be divided into 11 folds"
    ):
        load(copied, split, val_fraction=val_fraction, fold="1/11")


def test_folds_divide_the_photos_of_all_folders_once(copied):
    """A folder that is named twice, and one with copies of its photos, stay on one side."""
    other = copied.parent / "other"
    shutil.copytree(copied, other)
    sources = [
        SourceConfig.model_validate({"path": name, "split": split, "val_fraction": fraction})
        for name, split, fraction in (("mine", "train", 0.2), ("mine", "val", 0.2), ("other", "all", None))
    ]
    for number in (1, 2):
        train, val = (
            paths_of(load_sources(sources, copied.parent, fold=f"{number}/2", part=part)) for part in ("train", "val")
        )
        assert len(train) + len(val) == len({*train, *val}) == 40
        for names in (train, val):
            assert {path.replace("/other/", "/mine/") for path in names} == {path for path in names if "/mine/" in path}


def test_names_that_are_not_utf8_are_written_printably(tmp_path):
    paths = np.array([b"/a/caf\xe9.jpg", b"/a/caf\xe9 (2).jpg", b"/a/b.jpg", b"/a/c.jpg"])
    photos = replace(unlike(4), paths=paths)
    (warning,) = mixed_warning(photos.select([0, 2, 3]), photos.select([1]))
    assert r"/a/caf\xe9.jpg and /a/caf\xe9 (2).jpg" in warning
    found = groups.Groups(np.array([0, 0, 2, 3]), {"copies by name": [1]})
    assert groups.describe_groups(found, photos) == r"4 photos form 3 groups: 1 copies by name (caf\xe9 (2).jpg)"


def test_when_and_by_what_a_photo_was_taken(tmp_path):
    image, exif = Image.new("RGB", (9, 9)), Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Model 3"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    image.save(tmp_path / "a.jpg", exif=exif)
    camera, seconds = captured(np.fromfile(tmp_path / "a.jpg", np.uint8))
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:09:00"
    image.save(tmp_path / "b.jpg", exif=exif)
    assert captured(np.fromfile(tmp_path / "b.jpg", np.uint8)) == (camera, seconds + 51)
    exif.get_ifd(0x8769)[0x9003] = "yesterday"
    for name, options in (("c.jpg", {"exif": exif}), ("d.jpg", {}), ("e.png", {}), ("f.jpg", {"exif": b"Exif\0\0MM\0*\0\0"})):
        image.save(tmp_path / name, **options)
        assert captured(np.fromfile(tmp_path / name, np.uint8)) == (0, 0)


def test_damaged_photos_of_a_divided_folder_are_counted_among_all_of_it(copied):
    for number in range(10):
        for copy in range(2):
            for suffix in (".jpg", ".xml"):
                shutil.copy(copied / f"a{number}{suffix}", copied / f"b{number}{copy}{suffix}")
    (copied / "a0.jpg").write_bytes(b"damaged")
    options = {"val_fraction": 0.3, "damaged": "skip"}
    train = load(copied, "train", **options, fraction=0.2)  # one of 40, though more than 5 % of the photos in use
    assert len(train.photos) < 19
    assert train.notes[-1] == "1 of 40 photos cannot be read and were left out (data.damaged: skip)"
    train = load(copied, "train", **options, fraction=0.2)  # from the cache
    assert train.notes[-1] == "1 of 40 photos cannot be read and were left out (data.damaged: skip)"
    assert load(copied, "val", part="val", **options).damaged == ()  # data.train says it


def test_a_divided_folder_that_is_only_evaluated_on_has_its_notes(copied):
    (copied / "a0.jpg").write_bytes(b"damaged")
    train, val = (SourceConfig(path=path, split="val", val_fraction=0.3) for path in ("other", "mine"))
    data = DataConfig(root=str(copied.parent), classes=("cat",), train=(train,), val=(val,), damaged="skip")
    loaded = load_annotations(data, "val")
    assert loaded.num_damaged == len(loaded.damaged) == 1
    assert "19 photos form 10 groups" in loaded.notes[0]
