import numpy as np

from data.shapes import CLASSES, draw_image, draw_small_shapes
from tests.helpers.annotations import load


def test_images_are_reproducible():
    first, second = draw_image(1, 5), draw_image(1, 5)
    assert np.array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert not np.array_equal(first[0], draw_image(2, 5)[0])


def test_contents_of_the_images():
    drawn = [draw_image(0, index) for index in range(150)]
    shapes = [shape for _, found in drawn for shape in found]
    assert {shape.name for shape in shapes} == set(CLASSES)
    assert any(not found for _, found in drawn)
    assert 2 <= sum(shape.difficult for shape in shapes) < len(shapes) / 4
    sides = [shape.xmax - shape.xmin + 1 for shape in shapes]
    assert min(sides) < 25
    assert max(sides) > 120
    for image, found in drawn:
        height, width = image.shape[:2]
        for shape in found:
            assert 1 <= shape.xmin < shape.xmax <= width
            assert 1 <= shape.ymin < shape.ymax <= height


def test_boxes_enclose_the_shapes():
    # A lone shape contrasts with the background along all four sides of its box.
    index = next(i for i in range(300) if len(draw_image(4, i)[1]) == 1 and draw_image(4, i)[1][0].name == "circle")
    image, (shape,) = draw_image(4, index)
    assert not shape.difficult
    inside = image[shape.ymin - 1 : shape.ymax, shape.xmin - 1 : shape.xmax].astype(float)
    center = inside[inside.shape[0] // 2, inside.shape[1] // 2]
    like_center = np.abs(inside - center).max(axis=2) < 45
    assert like_center.mean() > 0.55  # a circle fills 0.785 of its box


def test_the_layout_is_voc(shapes_root):
    for split, count in (("train", 24), ("val", 8), ("trainval", 32)):
        loaded = load(shapes_root / "shapes", split, CLASSES)
        assert len(loaded.photos) == count
        assert loaded.notes == ()


def test_small_shapes_are_small_and_apart():
    for index in range(6):
        image, shapes = draw_small_shapes(3, index)
        assert image.shape == (1200, 1200, 3)
        assert 10 <= len(shapes) <= 40
        boxes = np.array([shape[1:5] for shape in shapes])
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        assert sides.max() <= 22  # a diameter of 20, rotated, and the blurred outline
        assert sides.max(axis=1).min() >= 6
        apart = (boxes[:, None, :2] > boxes[None, :, 2:]) | (boxes[:, None, 2:] < boxes[None, :, :2])
        assert (apart.any(axis=2) | np.eye(len(boxes), dtype=bool)).all()
    assert not np.array_equal(image, draw_small_shapes(4, index)[0])
