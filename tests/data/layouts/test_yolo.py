"""YOLO: common layouts, numbers without names, and text files that are not labels."""

from dataclasses import replace

import numpy as np
import pytest

from data.dataset.errors import DataError
from data.layouts.find import find_format
from data.shapes import CLASSES
from tests.helpers.annotations import load
from tests.helpers.exports import SHOTS, WIDE, labelled, numbers_of, photos, write, xmls
from tests.helpers.formats import assert_same_objects, load_shapes, write_yolo


@pytest.mark.parametrize("number", [300, 3000, 10**8])
def test_without_names_an_outlying_number_is_refused(tmp_path, number, proposed):
    folder = labelled(tmp_path / "mine", "0 0.5 0.5 0.2 0.2\n\n", names="")
    write(folder / "labels/photo-01.txt", f"1 0.5 0.5 0.2 0.2\n\n{number} 0.5 0.5 0.1 0.1\n")
    (line,) = proposed(folder, code=2).splitlines()
    assert f"photo-01.txt: line 3: class {number}, but {number - 2} lower numbers have no objects and no file has names" in line
    write(folder / "data.yaml", f"names: {{0: cat, 1: dog, {number}: red kite}}")
    assert load(folder).photos.labels.tolist() == [0, 1, 2, 0]


def test_without_names_numbers_may_leave_gaps(tmp_path, proposed):
    """A few of COCO's 80 classes have gaps."""
    folder = labelled(tmp_path / "mine", "0 0.5 0.5 0.2 0.2\n79 0.5 0.5 0.1 0.1\n", names="")
    assert "class 79 (3)" in proposed(folder)


def test_text_files_beside_photos_need_not_be_labels(tmp_path):
    photos(tmp_path / "mine", WIDE)
    for shot in WIDE:
        write(tmp_path / f"mine/{shot.name}.txt", "A cat on a mat, in 1999.\n")
    with pytest.raises(DataError, match="unknown dataset format"):
        load(tmp_path / "mine")


@pytest.mark.parametrize(
    "line", ["Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59", "5,5,25,25,1,4,0,0", ","]
)
def test_other_text_files_do_not_outvote_readable_annotations(tmp_path, line):
    """Text files of KITTI and VisDrone beside VOC annotations of fewer photos."""
    photos(tmp_path / "mine/images")
    xmls(tmp_path / "mine/annotations", SHOTS[:6])
    for shot in SHOTS:
        write(tmp_path / f"mine/label_2/{shot.name}.txt", f"{line}\n")
    loaded = load(tmp_path / "mine")
    assert numbers_of(loaded) >= set(range(1, 6))
    assert len(loaded.photos.labels) == sum(len(shot.objects) for shot in SHOTS[:6])
    assert not any("more than one format" in note for note in loaded.notes)


@pytest.mark.parametrize("images, labels", [("images/train", "labels/train"), ("train/images", "train/labels")])
@pytest.mark.parametrize(
    "names", ["[cross, star, triangle, square, circle]", "{4: circle, 2: triangle, 0: cross, 3: square, 1: star}", None]
)
def test_common_yolo_layouts(tmp_path, shapes, images, labels, names):
    """The names' order differs from the run's classes, so that numbers alone would give other classes."""
    write_yolo(shapes, tmp_path / "mine" / images, tmp_path / "mine" / labels)
    if names:
        (tmp_path / "mine/data.yaml").write_text(f"names: {names}\n")
    assert find_format(tmp_path / "mine")[0] == "yolo"
    assert CLASSES == ("circle", "square", "triangle", "star", "cross")
    expected = replace(shapes, labels=4 - shapes.labels) if names else shapes
    assert_same_objects(load_shapes(tmp_path / "mine", "train").photos, expected)


def test_yolo_names_take_precedence_over_numbers(tmp_path, shapes):
    write_yolo(shapes, tmp_path / "mine/images", tmp_path / "mine/labels")
    (tmp_path / "mine/classes.txt").write_text("\n".join(CLASSES))
    photos = load_shapes(tmp_path / "mine", classes=CLASSES[::-1]).photos
    np.testing.assert_array_equal(len(CLASSES) - 1 - photos.labels, shapes.labels)
