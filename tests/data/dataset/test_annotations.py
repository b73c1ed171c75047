"""Annotations as arrays: selecting, joining and comparing; parts without objects; copies of photos."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import train
from data.dataset.annotations import Annotations, shared_warning
from data.dataset.errors import DataError
from data.dataset.similar import SIDE
from tests.helpers.annotations import load
from tests.helpers.exports import NAMES, SHOTS, SMALL, coco, dump, photos, texts, write, xmls
from tests.helpers.voc import item, make_folder, xml

CLASSES = ("cat", "dog", "owl")


def photos_of(*labels: list[int], folder: str = "a", first: int = 0) -> Annotations:
    """Return a photo for each list of labels. All boxes differ."""
    every = [label for each in labels for label in each]
    numbers = np.arange(first, first + len(every))
    return Annotations(
        classes=CLASSES,
        paths=np.array([f"{folder}/{number}.jpg".encode() for number in range(len(labels))], np.bytes_),
        sizes=np.array([(100 + first, 50 + number) for number in range(len(labels))], np.int32).reshape(-1, 2),
        starts=np.cumsum([0, *map(len, labels)]),
        boxes=np.stack([numbers, numbers + 1, numbers + 12, numbers + 14], axis=1).astype(np.float32),
        labels=np.array(every, np.int64),
        difficult=numbers % 2 == 1,
        truncated=(numbers % 3 - 1).astype(np.int8),
        contents=np.arange(len(labels)) + 100 * (first + 1),
        thumbnails=np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None], (len(labels), SIDE, SIDE)),
        captured=np.arange(2 * len(labels)).reshape(-1, 2) + first,
    )


def assert_same(one: Annotations, other: Annotations) -> None:
    for field in fields(Annotations):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_objects_follow_their_photos():
    photos = photos_of([0, 1], [], [2])
    assert len(photos) == 3
    assert [photos.objects(index) for index in range(3)] == [slice(0, 2), slice(2, 2), slice(2, 3)]
    truth = photos.ground_truth(2)
    assert truth["boxes"].tolist() == [[3, 4, 14, 16]]  # edges 2, 3, 14, 16 as inclusive pixels from 1
    assert [truth[name].tolist() for name in ("labels", "difficult", "truncated")] == [[2], [False], [1]]


def test_select_keeps_the_given_order():
    photos = photos_of([0, 1], [], [2])
    picked = photos.select([2, 0, 1])
    assert [picked.path(index) for index in range(3)] == ["a/2.jpg", "a/0.jpg", "a/1.jpg"]
    for here, there in enumerate([2, 0, 1]):
        for name, values in picked.ground_truth(here).items():
            assert np.array_equal(values, photos.ground_truth(there)[name])
        assert picked.sizes[here].tolist() == photos.sizes[there].tolist()
        assert picked.contents[here] == photos.contents[there]
    assert_same(photos.select(range(3)), photos)
    assert len(photos.select([]).boxes) == 0
    assert photos.select([1]).starts.tolist() == [0, 0]


def test_join_concatenates_photos():
    one, other = photos_of([0, 1], []), photos_of([2], [1, 1], folder="b", first=7)
    both = Annotations.join([one, other])
    assert both.starts.tolist() == [0, 2, 2, 3, 5]
    assert_same(both.select([0, 1]), one)
    assert_same(both.select([2, 3]), other)


def test_names_are_unique():
    assert photos_of([0], []).names() == ["0.jpg", "1.jpg"]
    both = Annotations.join([photos_of([0], folder="set/a"), photos_of([0], folder="set/b", first=1)])
    assert both.names() == ["a/0.jpg", "b/0.jpg"]


def test_the_digest_covers_names_sizes_and_objects_but_not_the_folder():
    photos = photos_of([0, 1], [2])
    assert photos_of([0, 1], [2], folder="moved/to").digest() == photos.digest()
    assert len(photos.digest()) == 8
    names = ("sizes", "starts", "boxes", "labels", "difficult")
    others = [replace(photos, **{name: getattr(photos, name).copy()}) for name in names]
    for other, name in zip(others, names, strict=True):
        values = getattr(other, name)
        values[-1] = ~values[-1] if values.dtype == bool else values[-1] + 1
    others.append(replace(photos, paths=np.array([b"a/0.jpg", b"a/2.jpg"])))
    assert len({photos.digest(), *(other.digest() for other in others)}) == 7


def test_classes_without_objects_are_listed():
    assert photos_of([0, 0], [1]).absent_classes() == ["owl"]
    assert photos_of([]).absent_classes() == list(CLASSES)
    assert photos_of([2, 1, 0]).absent_classes() == []


def test_photos_without_usable_objects_are_refused():
    mixed = photos_of([0, 1], [])
    for with_difficult in (True, False):
        mixed.require_objects("data.val", with_difficult)
    difficult = replace(mixed, difficult=np.ones(2, bool))
    difficult.require_objects("data.train", True)
    with pytest.raises(DataError, match=r"^data.val: all 2 objects are marked difficult, of 2 photos \(a/0.jpg, ...\)"):
        difficult.require_objects("data.val", False)
    with pytest.raises(DataError, match=r"^data.train: no photo has an object, of 2 photos"):
        photos_of([], []).require_objects("data.train", True)


def test_equal_content_is_found_under_other_names():
    one = replace(photos_of([0], [1], [2]), contents=np.array([5, 6, 5]))
    other = replace(photos_of([0], [1], [2], folder="b"), contents=np.array([7, 5, 6]))
    assert one.shared_with(other) == [("a/0.jpg", "b/1.jpg"), ("a/1.jpg", "b/2.jpg")]  # the first of equal photos
    assert one.repeats() == [("a/0.jpg", "a/2.jpg")]
    assert other.repeats() == []
    assert one.shared_with(replace(other, contents=np.array([1, 2, 3]))) == []


def copied(source, target):
    target.write_bytes(source.read_bytes())


@pytest.mark.parametrize("put", [copied, lambda source, target: target.symlink_to(source), lambda *both: os.link(*both)])
def test_a_photo_in_both_parts_is_found_under_any_name(tmp_path, put):
    for name, stems in (("one", "abc"), ("two", "de")):
        make_folder(tmp_path / name, {stem: xml(item()) for stem in stems})
    (tmp_path / "two/JPEGImages/d.jpg").unlink()
    put(tmp_path / "one/JPEGImages/b.jpg", tmp_path / "two/JPEGImages/d.jpg")
    for _ in range(2):  # the second time from the cache
        train, val = (load(tmp_path / path).photos for path in ("one", "two"))
        one, two = tmp_path / "one/JPEGImages/b.jpg", tmp_path / "two/JPEGImages/d.jpg"
        message = f"warning: 1 photos are in both data.train and data.val ({one} is {two}): mAP will be too high"
        assert shared_warning(train, val) == [message]
    assert shared_warning(train.select([0, 2]), val) == []


def test_copies_within_a_part_are_counted(tmp_path):
    make_folder(tmp_path / "one", {photo: xml(item()) for photo in "abcd"})
    for name in "ca":
        copied(tmp_path / "one/JPEGImages/b.jpg", tmp_path / f"one/JPEGImages/{name}.jpg")
    (note,) = load(tmp_path / "one").notes
    where = tmp_path / "one/JPEGImages"
    assert note == f"2 photos are copies of another ({where}/a.jpg is {where}/b.jpg, ...) and count twice; remove the copies"


def without_objects(folder: Path, layout: str, part: str) -> None:
    """Write two splits, one of them without objects."""
    for name, shots in (("train", SHOTS[1:6]), ("val", SHOTS[6:])):
        bare = [shot._replace(objects=()) for shot in shots] if name == part else shots
        if layout == "coco":
            photos(folder / name, shots)
            dump(folder / f"annotations/instances_{name}.json", coco(bare))
        else:
            photos(folder / "images" / name, shots)
        if layout == "voc":
            xmls(folder / "annotations" / name, bare)
        if layout == "yolo" and name != part:  # labels/val is missing
            texts(folder / "labels" / name, shots)
    if layout == "yolo":
        write(folder / "classes.txt", "\n".join(NAMES))


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_parts_without_objects_are_refused(tmp_path, layout, part, capsys, proposed):
    without_objects(tmp_path / "mine", layout, part)
    parts = {each: [{"path": "mine", "split": each}] for each in ("train", "val")}
    data = {"root": str(tmp_path), "classes": list(NAMES), **parts}
    config = {"output_dir": str(tmp_path / "run"), "data": data, "model": {"pretrained": "none"}}
    write(tmp_path / "b.yaml", json.dumps(config))
    assert train.main(["--config", str(tmp_path / "b.yaml"), *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"data.{part}: no photo has an object" in line
    assert not (tmp_path / "run/checkpoints").exists()
    assert "no photo has an object" in proposed(tmp_path / "mine", code=2)


def test_evaluation_needs_objects_that_are_not_difficult(tmp_path, proposed):
    for part, shots in (("train", SHOTS[:6]), ("val", SHOTS[6:])):
        photos(tmp_path / "mine" / part, shots)
        xmls(tmp_path / "mine" / part, shots, extra="<difficult>1</difficult>")
    loaded = load(tmp_path / "mine", "val").photos
    loaded.require_objects("data.train", with_difficult=True)
    with pytest.raises(DataError, match=r"data\.val: all \d+ objects are marked difficult, of 4 photos"):
        loaded.require_objects("data.val", with_difficult=False)
    assert "objects are marked difficult" in proposed(tmp_path / "mine", code=2)
