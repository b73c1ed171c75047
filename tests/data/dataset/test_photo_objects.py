"""Boxes that are fixed or left out, in every format."""

import numpy as np
import pytest

from tests.helpers.annotations import load
from tests.helpers.exports import NAMES, Shot, coco, dump, photos, texts, write, xmls


def loaded_and_place(folder, layout, shot):
    """Load one photo written in a format, and return how notes name its objects."""
    photos(folder / "images", [shot])
    write(folder / "classes.txt", "\n".join(NAMES))
    if layout == "coco":
        dump(folder / "annotations/a.json", coco([shot]))
        return load(folder), "annotation {} of photo-01.jpg"
    {"voc": xmls, "yolo": texts}[layout](folder / "annotations", [shot])
    return load(folder), {"voc": "photo-01.xml: object {}", "yolo": "photo-01.txt: line {}"}[layout]


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_fixed_boxes_are_reported(tmp_path, layout):
    far = 64 if layout == "yolo" else 500  # YOLO's numbers cannot be much larger than 1
    width = 1 if layout == "voc" else 0  # equal corners are a mistake
    objects = ((0, 2, 2, 2 + width, 9), (1, 5, 5, far, 9), (2, 5, 5, 9, 9))
    shot = Shot("photo-01", 62 if layout == "yolo" else 90, 90, objects)
    loaded, place = loaded_and_place(tmp_path / "mine", layout, shot)
    clipped, empty = loaded.notes
    assert clipped.startswith("1 boxes reached beyond their photo and were clipped to it: ")
    assert place.format(2) in clipped
    assert empty.startswith("1 boxes without area were left out: ")
    assert place.format(1) in empty
    assert loaded.photos.labels.tolist() == [1, 2]


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_duplicate_objects_are_used_once(tmp_path, layout):
    """Merged annotations repeat objects. An equal box of another class, or a box nearby, is another object."""
    objects = ((0, 5, 5, 20, 30), (1, 5, 5, 20, 30), (0, 5, 5, 20, 30), (0, 5, 5, 20, 31), (0, 5, 5, 20, 30))
    loaded, place = loaded_and_place(tmp_path / "mine", layout, Shot("photo-01", 62, 90, objects))
    (note,) = loaded.notes
    assert note.startswith("2 boxes repeat another of their class and were left out: ")
    assert [place.format(number) in note for number in (1, 2, 3, 4, 5)] == [False, False, True, False, True]
    assert loaded.photos.labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(loaded.photos.boxes[:, 3], [30, 30, 31], atol=1e-3)
