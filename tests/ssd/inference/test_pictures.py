"""Boxes, labels and names drawn on photos."""

import numpy as np
import pytest

from ssd.inference.pictures import TRUTH, contact_sheet, draw_boxes, scaled_into


def test_pictures_show_boxes_where_they_are():
    image = np.full((100, 200, 3), 60, np.uint8)
    drawn = draw_boxes(image, np.array([[50, 40, 150, 90]]), np.array([0]), ["cat"], np.array([0.5]), TRUTH)
    assert (image == 60).all()
    assert (drawn[40:90, 50] == 255).all()
    assert (drawn[40:90, 149] == 255).all()
    assert (drawn[89, 50:150] == 255).all()
    assert (drawn[90:] == 60).all()
    assert (drawn[:, 150:] == 60).all()
    assert (drawn[70, 60:140] == 60).all()
    wild = np.array([[-50, -50, 900, 900], [5, 5, 5, 5]])
    assert draw_boxes(image, wild, np.array([0, 1]), ["cat", "dog"]).shape == image.shape
    sheet = contact_sheet([image, image[:, :10], image], columns=2, size=64)
    assert sheet.shape == (128, 128, 3)


@pytest.mark.parametrize("width, height", [(200, 100), (1700, 1000), (3000, 3), (3, 3000), (1, 1)])
def test_all_sides_of_a_box_around_the_photo_are_visible(width, height):
    image = np.full((height, width, 3), 60, np.uint8)
    drawn = draw_boxes(image, np.array([[0, 0, width, height]]), np.array([0]), [""], colour=TRUTH)
    for side in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (side == 255).mean() > 0.6  # its label may lie on it


def test_names_in_any_alphabet_are_drawn():
    image = np.zeros((120, 300, 3), np.uint8)
    pictures = [draw_boxes(image, np.array([[9, 60, 90, 90]]), np.array([0]), [name]) for name in ("кот", "猫", "γάτα", "???")]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_tiny_photos_are_scaled():
    for shape in ((3, 3000, 3), (3000, 3, 3), (1, 1, 3)):
        small = scaled_into(np.zeros(shape, np.uint8), 420, 840)
        assert 1 <= small.shape[1] <= 420
        assert 1 <= small.shape[0] <= 840
        assert contact_sheet([np.zeros(shape, np.uint8)]).shape == (360, 360, 3)


def test_box_lines_do_not_cross_labels():
    image, box, names = np.zeros((100, 200, 3), np.uint8), [150, 60, 199, 90], ["a long name of a class", ""]
    alone = draw_boxes(image, np.array([box]), np.array([0]), names)
    label = alone[:59].any(axis=2)
    assert np.flatnonzero(label.any(axis=0)).min() < 150  # there is no room for it to the right
    other = draw_boxes(image, np.array([box, [120, 50, 190, 52]]), np.array([0, 1]), names)
    np.testing.assert_array_equal(other[:59][label], alone[:59][label])  # the other box's lines run below it
    assert (other[50:53, 120] != 0).any()
