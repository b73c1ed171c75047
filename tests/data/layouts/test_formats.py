"""COCO and YOLO: the same photos give the same data set in all three formats. Faults in their files are reported."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest

from data.dataset.annotation_loader import load_annotations
from data.dataset.annotations import Annotations
from data.dataset.conventions import CONVENTIONS
from data.dataset.errors import DataError
from data.layouts.find import FORMATS, find_format
from data.shapes import CLASSES
from ssd.config.schema import DataConfig, SourceConfig
from tests.helpers.formats import as_coco, copy_photos, load, write_yolo


@pytest.fixture(scope="module")
def voc(shapes_root):
    return load(shapes_root, "shapes", "train")


def assert_equal(photos: Annotations, expected: Annotations) -> None:
    assert [Path(photos.path(i)).name for i in range(len(photos))] == [
        Path(expected.path(i)).name for i in range(len(expected))
    ]
    np.testing.assert_array_equal(photos.sizes, expected.sizes)
    np.testing.assert_array_equal(photos.starts, expected.starts)
    np.testing.assert_array_equal(photos.labels, expected.labels)
    np.testing.assert_allclose(photos.boxes, expected.boxes, atol=1e-2)


@pytest.mark.parametrize(
    "file, images",
    [
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
        ("train.json", "images"),
    ],
)
def test_common_coco_layouts(tmp_path, voc, file, images):
    copy_photos(voc, tmp_path / "mine" / images)
    path = tmp_path / "mine" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_coco(voc)))
    assert find_format(tmp_path / "mine")[0] == "coco"
    assert_equal(load(tmp_path, "mine", "train"), voc)


def test_a_named_coco_file_is_divided_like_a_folder(tmp_path, voc):
    copy_photos(voc, tmp_path / "images")
    (tmp_path / "all.json").write_text(json.dumps(as_coco(voc)))
    assert_equal(load(tmp_path, "all.json"), voc)
    parts = [load(tmp_path, "all.json", split, val_fraction=0.3) for split in ("train", "val")]
    names = [{part.path(i) for i in range(len(part))} for part in parts]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == len(voc)


def test_crowds_are_dropped_and_counted(tmp_path, voc):
    copy_photos(voc, tmp_path / "images")
    content = as_coco(voc)
    for item in content["annotations"]:
        item["segmentation"] = [[1, 2, 9, 2, 9, 8]]
    content["annotations"][0].update(iscrowd=1, segmentation={"size": [9, 9], "counts": [3, 78]})
    (tmp_path / "all.json").write_text(json.dumps(content))
    loaded = load_annotations([SourceConfig(path="all.json")], tmp_path, CLASSES)
    np.testing.assert_allclose(loaded.photos.boxes, voc.boxes[1:], atol=1e-3)
    assert ["1 crowd regions (iscrowd) are not single objects and were left out" in note for note in loaded.notes] == [True]


@pytest.mark.parametrize(
    ("share", "extra"),
    [(1, {}), (2, {}), (40, {"attributes": {"occluded": False}}), (9, {})],
    ids=["all", "half", "by CVAT", "all masks"],
)
def test_masks_marked_as_crowds_are_objects(tmp_path, voc, share, extra):
    """CVAT marks every mask as a crowd."""
    copy_photos(voc, tmp_path / "images")
    content = as_coco(voc)
    marked = content["annotations"][::share]
    for item in marked:
        item.update(iscrowd=1, segmentation={"size": [9, 9], "counts": [3, 78]}, **extra)
    (tmp_path / "all.json").write_text(json.dumps(content))
    loaded = load_annotations([SourceConfig(path="all.json")], tmp_path, CLASSES)
    np.testing.assert_allclose(loaded.photos.boxes, voc.boxes, atol=1e-3)
    (note,) = loaded.notes
    assert f"{len(marked)} of {len(voc.labels)} annotations are marked as crowds (iscrowd), as CVAT marks every mask" in note
    assert find_format(tmp_path)[1].class_counts() == dict(zip(CLASSES, np.bincount(voc.labels), strict=True))


@pytest.mark.parametrize("images, labels", [("images/train", "labels/train"), ("train/images", "train/labels")])
@pytest.mark.parametrize(
    "names", ["[cross, star, triangle, square, circle]", "{4: circle, 2: triangle, 0: cross, 3: square, 1: star}", None]
)
def test_common_yolo_layouts(tmp_path, voc, images, labels, names):
    """The names' order differs from the run's classes, so that numbers alone would give other classes."""
    write_yolo(voc, tmp_path / "mine" / images, tmp_path / "mine" / labels)
    if names:
        (tmp_path / "mine/data.yaml").write_text(f"names: {names}\n")
    assert find_format(tmp_path / "mine")[0] == "yolo"
    assert CLASSES == ("circle", "square", "triangle", "star", "cross")
    assert_equal(load(tmp_path, "mine", "train"), replace(voc, labels=4 - voc.labels) if names else voc)


def test_yolo_names_take_precedence_over_numbers(tmp_path, voc):
    write_yolo(voc, tmp_path / "mine/images", tmp_path / "mine/labels")
    (tmp_path / "mine/classes.txt").write_text("\n".join(CLASSES))
    photos = load(tmp_path, "mine", classes=CLASSES[::-1])
    np.testing.assert_array_equal(len(CLASSES) - 1 - photos.labels, voc.labels)


def test_yolo_outlines_and_photos_without_labels(tmp_path, voc):
    write_yolo(voc, tmp_path / "mine/images", tmp_path / "mine/labels")
    texts = sorted((tmp_path / "mine/labels").iterdir())
    texts[0].write_text("2 0.1 0.2 0.5 0.3 0.3 0.6\n")
    texts[1].unlink()
    photos = load(tmp_path, "mine")
    box = photos.boxes[photos.objects(0)] / np.tile(photos.sizes[0], 2)
    np.testing.assert_allclose(box, [[0.1, 0.2, 0.5, 0.6]], atol=1e-6)
    assert photos.starts[1] == photos.starts[2] == 1


@pytest.mark.parametrize(
    "line, message",
    [
        ("0 0.5 0.5 0.1", "line 1: expected a class and four numbers"),
        ("0 0.5 0.5 0.1 x", "line 1: expected numbers, got"),
        ("0 50 50 10 10", "line 1: expected numbers from 0 to 1 \\(relative to the photo\\)"),
        ("0 nan 0.5 0.1 0.1", "line 1: expected numbers from 0 to 1"),
        ("9 0.5 0.5 0.1 0.1", "line 1: class 9 has no name; known: 0 circle, 1 square"),
        ("-1 0.5 0.5 0.1 0.1", "line 1: expected a class"),
    ],
)
def test_yolo_faults_name_file_and_line(tmp_path, voc, line, message):
    write_yolo(voc, tmp_path / "mine/images", tmp_path / "mine/labels")
    path = sorted((tmp_path / "mine/labels").iterdir())[0]
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=f"{path.name}: {message}"):
        load(tmp_path, "mine")


def change(*place: object, to: object):
    def apply(content: dict) -> None:
        *parents, last = place
        for part in parents:
            content = content[part]
        content[last] = to

    return apply


@pytest.mark.parametrize(
    "damage, message",
    [
        (change("categories", to=None), "expected lists of images, annotations, categories"),
        (change("images", 0, to={"id": 1}), r"images\[0\]: file_name is missing"),
        (change("images", 0, "file_name", to="none.jpg"), "none.jpg: no such photo"),
        (change("images", 0, "file_name", to="../images/x.jpg"), "no such photo"),
        (change("images", 0, "width", to=9), "says 9 × .* the photo has"),
        (change("annotations", 0, "bbox", to=[1, 2, 3]), r"bbox \[1, 2, 3\] is not left, top, width and height"),
        (change("annotations", 0, "bbox", to=[1, 2, -3, 4]), "is not left, top, width and height"),
        (change("annotations", 0, "bbox", to=None), "bbox None is not"),
        (change("annotations", 0, "category_id", to=99), "category_id 99 is in no category"),
        (change("annotations", 0, "bbox", to=[1, 2, 10**4000, 4]), "is not left, top, width and height"),
        (
            change("annotations", 0, "bbox", to=[1, 2, 3, 4, 0.5]),
            r"has a rotated box \(angle 0\.5\), but SSD needs upright ones",
        ),
        (change("annotations", 0, "attributes", to={"rotation": 30.0}), r"has a rotated box \(angle 30\.0\)"),
        (change("annotations", 0, "category_id", to="9" * 5000), "category_id '99.*' is in no category"),
        (change("images", 0, "id", to=[[[1]]]), r"images\[0\]: id: expected a number or text"),
        (change("categories", 0, "name", to="circel"), "unknown class 'circel'; did you mean 'circle'"),
    ],
)
def test_coco_faults_name_file_and_annotation(tmp_path, voc, damage, message):
    copy_photos(voc, tmp_path / "images")
    content = as_coco(voc)
    content["categories"].sort(key=lambda category: category["id"] != 7 * int(voc.labels[0]) + 3)
    if "circel" in message:
        content["categories"] = as_coco(voc)["categories"]
    damage(content)
    (tmp_path / "all.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load(tmp_path, "all.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "expected lists of"),
        ('{"images": []}', "expected lists of"),
        ("[" * 5000 + "]" * 5000, "is nested too deep"),
        ('{"images": [{"id": %s}]}' % ("9" * 5000), "has a number with thousands of digits"),
    ],
)
def test_invalid_coco_files(tmp_path, text, message):
    (tmp_path / "all.json").write_text(text)
    with pytest.raises(DataError, match=rf"all\.json: {message}"):
        load(tmp_path, "all.json")


@pytest.mark.parametrize("deep", [json.loads("[" * 700 + "]" * 700), {"a": json.loads("[" * 700 + "]" * 700)}])
@pytest.mark.parametrize("key", ["attributes", "segmentation", "bbox", "iscrowd", "id"])
def test_deep_nesting_stays_in_the_reader(tmp_path, voc, deep, key):
    copy_photos(voc, tmp_path / "images")
    content = as_coco(voc)
    content["annotations"][0][key] = deep
    (tmp_path / "all.json").write_text(json.dumps(content), encoding="utf-16")
    message = "is not left, top, width and height"
    with pytest.raises(DataError, match=message) if key == "bbox" else nullcontext():
        assert_equal(load(tmp_path, "all.json"), voc)


@pytest.mark.parametrize(("rotation", "is_upright"), [(0.0, True), ("180", True), (-180, True), (1.5, False), (90, False)])
def test_boxes_rotated_in_cvat_are_refused(tmp_path, voc, rotation, is_upright):
    copy_photos(voc, tmp_path / "images")
    content = as_coco(voc)
    for item in content["annotations"]:
        item["attributes"] = {"occluded": False, "rotation": rotation}
    (tmp_path / "all.json").write_text(json.dumps(content))
    with nullcontext() if is_upright else pytest.raises(DataError, match="has a rotated box"):
        assert_equal(load(tmp_path, "all.json"), voc)


def test_a_fraction_is_reproducible(shapes_root, voc):
    half = load(shapes_root, "shapes", "train", fraction=0.5)
    again = load(shapes_root, "shapes", "train", fraction=0.5)
    assert half.paths.tolist() == again.paths.tolist()
    assert 4 < len(half) < 20
    assert set(half.paths.tolist()) < set(voc.paths.tolist())
    with pytest.raises(DataError, match="leaves no photo"):
        load(shapes_root, "shapes", "train", fraction=1e-9)


@pytest.mark.parametrize("data_format", [None, "voc", "coco", "yolo"])
def test_a_missing_folder_is_reported_for_any_format(tmp_path, data_format):
    with pytest.raises(DataError, match=r"none: no such folder; check data\.root"):
        load(tmp_path, "none", data_format=data_format)


def test_a_folder_of_unknown_format(tmp_path):
    (tmp_path / "mine").mkdir()
    cv2.imwrite(str(tmp_path / "mine/a.jpg"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "mine/boxes").mkdir()
    (tmp_path / "mine/boxes/a.csv").write_text("a.jpg,1,2,3,4\n")
    (tmp_path / "mine/a.json").write_text("{}")
    text = r"mine: unknown dataset format\. Found: 1 photos, 1 \.json, 1 \.csv; folders: none\. VOC needs .*COCO needs .*YOLO"
    with pytest.raises(DataError, match=text):
        load(tmp_path, "mine")


def test_the_configuration_accepts_every_format():
    (values, _) = get_args(DataConfig.model_fields["format"].annotation)
    assert set(get_args(values)) == set(FORMATS)
    assert {reader.convention for reader in FORMATS.values()} <= set(CONVENTIONS)
