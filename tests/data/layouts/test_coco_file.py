"""COCO's JSON files: ids, boxes, outlines, and faults in them."""

import json
from contextlib import nullcontext

import numpy as np
import pytest

from data.dataset.errors import DataError
from data.layouts.find import find_format
from data.shapes import CLASSES
from tests.helpers.annotations import load
from tests.helpers.exports import SHOTS, assert_true, coco, coco_file
from tests.helpers.formats import as_coco, assert_same_objects, copy_photos, load_shapes


def test_ids_may_be_text(tmp_path):
    coco_file(tmp_path / "mine", coco(text=True))
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


def test_ids_may_be_decimal(tmp_path):
    """pandas writes a column of ids with a missing one as decimals."""
    content = coco()
    for item in content["annotations"]:
        item.update(image_id=float(item["image_id"]), category_id=f"{item['category_id']}.0")
    coco_file(tmp_path / "mine", content)
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


def test_outlines_without_boxes_become_their_bounding_boxes(tmp_path):
    content = coco()
    for item in content["annotations"]:
        x, y, width, height = item.pop("bbox")
        item["segmentation"] = [[x, y, x + width, y, x, y + 3], [x + 2, y + 2, x + 1, y + height]]
    coco_file(tmp_path / "mine", content)
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [60, 60], "counts": "ab"}, r"annotation 1 of photo-01\.jpg: has a mask \(RLE\) but no bbox; export boxes"),
        ([[1, 2, 3]], "annotation 1 of .* has no bbox, and its segmentation is not a list of outlines"),
        ([[]], "annotation 1 of .* has no bbox, and its segmentation is not a list of outlines"),
        ([], "annotation 1 of .* bbox None is not left, top, width and height"),
    ],
)
def test_objects_without_a_box_are_refused(tmp_path, segmentation, message):
    content = coco()
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = segmentation
    coco_file(tmp_path / "mine", content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "mine")


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
def test_coco_faults_name_file_and_annotation(tmp_path, shapes, damage, message):
    copy_photos(shapes, tmp_path / "images")
    content = as_coco(shapes)
    content["categories"].sort(key=lambda category: category["id"] != 7 * int(shapes.labels[0]) + 3)
    if "circel" in message:
        content["categories"] = as_coco(shapes)["categories"]
    damage(content)
    (tmp_path / "all.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_shapes(tmp_path / "all.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("images", 1, "id", to="7"), "images: id 7 is used 2 times"),
        (change("categories", 1, "id", to="1"), "categories: id 1 is used 2 times"),
        (change("categories", 1, "name", to=None), r"a.json: categories\[1\]: name: expected text, got null; write its name"),
        (change("categories", 1, "name", to=True), r"a.json: categories\[1\]: name: expected text, got true; write its name"),
    ],
)
def test_duplicate_ids_and_categories_without_a_name_are_refused(tmp_path, damage, message):
    damage(content := coco())
    coco_file(tmp_path / "mine", content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "mine")


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
        load_shapes(tmp_path / "all.json")


@pytest.mark.parametrize("deep", [json.loads("[" * 700 + "]" * 700), {"a": json.loads("[" * 700 + "]" * 700)}])
@pytest.mark.parametrize("key", ["attributes", "segmentation", "bbox", "iscrowd", "id"])
def test_deep_nesting_stays_in_the_reader(tmp_path, shapes, deep, key):
    copy_photos(shapes, tmp_path / "images")
    content = as_coco(shapes)
    content["annotations"][0][key] = deep
    (tmp_path / "all.json").write_text(json.dumps(content), encoding="utf-16")
    message = "is not left, top, width and height"
    with pytest.raises(DataError, match=message) if key == "bbox" else nullcontext():
        assert_same_objects(load_shapes(tmp_path / "all.json").photos, shapes)


@pytest.mark.parametrize(("rotation", "is_upright"), [(0.0, True), ("180", True), (-180, True), (1.5, False), (90, False)])
def test_boxes_rotated_in_cvat_are_refused(tmp_path, shapes, rotation, is_upright):
    copy_photos(shapes, tmp_path / "images")
    content = as_coco(shapes)
    for item in content["annotations"]:
        item["attributes"] = {"occluded": False, "rotation": rotation}
    (tmp_path / "all.json").write_text(json.dumps(content))
    with nullcontext() if is_upright else pytest.raises(DataError, match="has a rotated box"):
        assert_same_objects(load_shapes(tmp_path / "all.json").photos, shapes)


@pytest.mark.parametrize(
    ("share", "extra"),
    [(1, {}), (2, {}), (40, {"attributes": {"occluded": False}}), (9, {})],
    ids=["all", "half", "by CVAT", "all masks"],
)
def test_masks_marked_as_crowds_are_objects(tmp_path, shapes, share, extra):
    """CVAT marks every mask as a crowd."""
    copy_photos(shapes, tmp_path / "images")
    content = as_coco(shapes)
    marked = content["annotations"][::share]
    for item in marked:
        item.update(iscrowd=1, segmentation={"size": [9, 9], "counts": [3, 78]}, **extra)
    (tmp_path / "all.json").write_text(json.dumps(content))
    loaded = load_shapes(tmp_path / "all.json")
    np.testing.assert_allclose(loaded.photos.boxes, shapes.boxes, atol=1e-3)
    (note,) = loaded.notes
    assert f"{len(marked)} of {len(shapes.labels)} annotations are marked as crowds (iscrowd), as CVAT marks every mask" in note
    assert find_format(tmp_path)[1].class_counts() == dict(zip(CLASSES, np.bincount(shapes.labels), strict=True))
