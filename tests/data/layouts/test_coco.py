"""COCO: common layouts, named files, and photos that files list."""

import json

import numpy as np
import pytest

from data.dataset.errors import DataError
from data.layouts.find import find_format
from tests.helpers.annotations import load
from tests.helpers.exports import coco, coco_file
from tests.helpers.formats import as_coco, assert_same_objects, copy_photos, load_shapes


def test_duplicate_photos_are_refused(tmp_path):
    content = coco()
    content["images"].append(content["images"][3] | {"id": 99})
    coco_file(tmp_path / "mine", content)
    with pytest.raises(DataError, match=r"photo-03\.jpg: 1 photos like this one are listed twice in a\.json"):
        load(tmp_path / "mine")


def test_annotations_of_unlisted_images_are_refused(tmp_path):
    content = coco()
    for item in content["annotations"]:
        item["image_id"] = f"photo {item['image_id']}"
    coco_file(tmp_path / "mine", content)
    with pytest.raises(DataError, match=r"a\.json: no annotation has the image_id of a listed image"):
        load(tmp_path / "mine")


@pytest.mark.parametrize(
    "file, images",
    [
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
        ("train.json", "images"),
    ],
)
def test_common_coco_layouts(tmp_path, shapes, file, images):
    copy_photos(shapes, tmp_path / "mine" / images)
    path = tmp_path / "mine" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_coco(shapes)))
    assert find_format(tmp_path / "mine")[0] == "coco"
    assert_same_objects(load_shapes(tmp_path / "mine", "train").photos, shapes)


def test_a_named_coco_file_is_divided_like_a_folder(tmp_path, shapes):
    copy_photos(shapes, tmp_path / "images")
    (tmp_path / "all.json").write_text(json.dumps(as_coco(shapes)))
    assert_same_objects(load_shapes(tmp_path / "all.json").photos, shapes)
    parts = [load_shapes(tmp_path / "all.json", split, val_fraction=0.3).photos for split in ("train", "val")]
    names = [{part.path(i) for i in range(len(part))} for part in parts]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == len(shapes)


def test_crowds_are_dropped_and_counted(tmp_path, shapes):
    copy_photos(shapes, tmp_path / "images")
    content = as_coco(shapes)
    for item in content["annotations"]:
        item["segmentation"] = [[1, 2, 9, 2, 9, 8]]
    content["annotations"][0].update(iscrowd=1, segmentation={"size": [9, 9], "counts": [3, 78]})
    (tmp_path / "all.json").write_text(json.dumps(content))
    loaded = load_shapes(tmp_path / "all.json")
    np.testing.assert_allclose(loaded.photos.boxes, shapes.boxes[1:], atol=1e-3)
    assert ["1 crowd regions (iscrowd) are not single objects and were left out" in note for note in loaded.notes] == [True]
