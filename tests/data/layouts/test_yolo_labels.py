"""YOLO's label files: boxes, outlines, poses, and faults in them."""

import re

import numpy as np
import pytest

from data.dataset.errors import DataError
from tests.helpers.annotations import load
from tests.helpers.exports import NAMES, SHOTS, WIDE, assert_true, labelled, lines, photos, write, yolo
from tests.helpers.formats import load_shapes, write_yolo


@pytest.mark.parametrize("kpt_shape", ["kpt_shape: [2, 2]", "kpt_shape: [2, 3]", ""])
def test_poses_are_read_as_their_boxes(tmp_path, kpt_shape):
    photos(tmp_path / "mine/images")
    points = " 0.99 0.98 0.01 0.02" if kpt_shape.endswith("2]") else " 0.99 0.98 2 0.01 0.02 1"
    for shot in SHOTS:
        write(tmp_path / f"mine/labels/{shot.name}.txt", lines(shot).replace("\n", f"{points}\n"))
    write(tmp_path / "mine/data.yaml", f"names: [{', '.join(NAMES)}]\n{kpt_shape}\n")
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


def test_a_pose_with_missing_points_is_refused(tmp_path):
    yolo(tmp_path / "mine", "names: [a, b, c, d]\nkpt_shape: [2, 3]")
    write(tmp_path / f"mine/labels/{SHOTS[1].name}.txt", "1 0.5 0.5 0.2 0.2 0.5 0.5 1\n")
    with pytest.raises(DataError, match="line 1: expected a class and four numbers and 2 keypoints"):
        load(tmp_path / "mine", classes=["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0.3 1 0.3 0.5 0.1 0.4 0 0.5 0 1", (0, 40, 60, 100)),
        ("0.3 0 0.3 0.6 0 0.6 0 0 0.3 0", (0, 0, 60, 60)),
        ("0 0 0.3 0 0.3 0.6 0 0.6 0 0", (0, 0, 60, 60)),  # closed rectangles at a corner and along each edge
        ("0.3 0.6 0 0.6 0 0 0.3 0 0.3 0.6", (0, 0, 60, 60)),
        ("1 1 0.5 1 0.5 0.2 1 0.2 1 1", (100, 20, 200, 100)),
        ("0 0 1 0 1 1 0 1 0 0", (0, 0, 200, 100)),
        ("0.2 0 0.6 0 0.6 0.4 0.2 0.4 0.2 0", (40, 0, 120, 40)),
        ("0.5 0.5 0.7 0.5 0.7 0.8 0.5 0.8 0.5 0.5", (100, 50, 140, 80)),
        ("0.9 0.5 0.4 0.3 0.8 0.2 1 0.1 0.7 0", (80, 0, 200, 50)),  # as a pose, its box would extend beyond the photo
        ("0.2 0.3 0.4 0.3 0.8 0.2 1 0.1", (40, 10, 200, 30)),
        ("0 0.5 0.1 0.1 0.2 0 0.3 0 0.6 0 0.8 0.2 1 0.6 0.5 1", (0, 0, 200, 100)),
    ],
)
def test_outlines_at_the_edge_of_a_photo_are_not_poses(tmp_path, line, box):
    found = load(labelled(tmp_path / "mine", f"0 {line}\n"), classes=["cat"]).photos
    np.testing.assert_allclose(found.boxes, [box] * 3, atol=1e-3)


@pytest.mark.parametrize("num_keypoints", range(2, 18))
@pytest.mark.parametrize("visible", [1, 2])
def test_poses_with_any_number_of_keypoints_become_boxes(tmp_path, num_keypoints, visible):
    """An outline lies beside each pose. If a pose could also be an outline, data.yaml has to say which."""
    points = "".join(f" {0.4 + i / 100} 0.5 {visible if i else 0}" for i in range(num_keypoints))
    text = f"0 0.5 0.5 0.4 0.6{points}\n"
    outline = "0 0.3 1 0.3 0.5 0.1 0.4 0 0.5 0 1\n"
    if num_keypoints % 2 or visible == 2:
        found = load(labelled(tmp_path / "mine", text + outline), classes=["cat"]).photos
        np.testing.assert_allclose(found.boxes, [(60, 20, 140, 80), (0, 40, 60, 100)] * 3, atol=1e-3)
        return
    folder = labelled(tmp_path / "mine", text)
    message = rf"photo-00\.txt: line 1: may be a pose or an outline, .*kpt_shape: \[{num_keypoints}, 3\]"
    with pytest.raises(DataError, match=message):
        load(folder, classes=["cat"])
    write(folder / "data.yaml", f"names: [cat]\nkpt_shape: [{num_keypoints}, 3]\n")
    np.testing.assert_allclose(load(folder, classes=["cat"]).photos.boxes, [(60, 20, 140, 80)] * 3, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.25 0.5 0.3 0.4 0.9", "expected a class and four numbers .*; if the last number is a confidence, export without"),
        ("0 0.25 0.5 0.3 0.4 0.9", "expected a class and four numbers .*; if an angle, export upright boxes"),
        ("0 0.25 0.5 0.3 0.4 45", r"has a rotated box \(angle 45\), but SSD needs upright ones"),
        ("0 0.25 0.5 0.3 0.4 -0.3", r"has a rotated box \(angle -0\.3\)"),
        ("0;0.25;0.5;0.3;0.4", "expected numbers, got '0;0.25;0.5;0.3;0.4'; write the class as a number, with spaces"),
        ("0 0,25 0,5 0,3 0,4", "expected numbers, got '0 0,25 0,5 0,3 0,4'"),
        ("cat 0.5 0.5 0.1 0.1", "expected numbers, got 'cat 0.5 0.5 0.1 0.1'; write the class as a number"),
        ("0,0.25,0.5,0.3,0.4", "expected numbers, got '0,0.25,0.5,0.3,0.4'; write the class as a number, with spaces"),
        ("0 50 50 10 10", "expected numbers from 0 to 1 \\(relative to the photo\\)"),
        ("1 0.25 0.5 0.3 0.4", "class 1 has no name; known: 0 cat. Add its name, or fix the number"),
    ],
)
def test_faulty_labels_are_reported(tmp_path, text, message):
    """Also beside the photos, where no folder marks them as labels."""
    folder = tmp_path / "mine"
    photos(folder, WIDE)
    for shot in WIDE:
        write(folder / f"{shot.name}.txt", f"{text}\n")
    write(folder / "classes.txt", "cat")
    with pytest.raises(DataError, match=f"photo-00.txt: line 1: {message}"):
        load(folder, classes=["cat"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("folder", ["labels", "images"])
def test_labels_in_other_encodings_are_reported_with_file_and_line(tmp_path, encoding, folder, proposed):
    """Windows' PowerShell writes UTF-16."""
    photos(tmp_path / "mine/images", WIDE)
    for shot in WIDE:
        path = tmp_path / f"mine/{folder}/{shot.name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes("0 0.25 0.5 0.3 0.4\n0 0.25 0.5 0.3 0.5 \xa0\n".encode(encoding))
    write(tmp_path / "mine/classes.txt", "cat")
    message = "line 2: is not UTF-8 text" if encoding == "latin-1" else "line 1: is UTF-16 or not text"
    assert re.search(rf"/photo-0\d\.txt: {message}", proposed(tmp_path / "mine", code=2))


@pytest.mark.parametrize("text", ["car 10 20 110 220\n", "<object>", "[[1, 2, 3, 4]]"])
def test_any_faulty_file_in_labels_is_reported_with_file_and_line(tmp_path, text, proposed):
    folder = labelled(tmp_path / "mine", text)
    assert ".txt: line 1: expected numbers" in proposed(folder, code=2).splitlines()[0]


def test_a_box_may_extend_two_pixels_over_both_edges(tmp_path):
    photos(tmp_path / "mine/images", WIDE)
    for shot in WIDE:
        write(tmp_path / f"mine/labels/{shot.name}.txt", f"0 0.5 0.5 {1 + 4 / shot.width} {1 + 4 / shot.height}\n")
    write(tmp_path / "mine/classes.txt", "cat")
    loaded = load(tmp_path / "mine", classes=["cat"])
    assert loaded.photos.boxes.tolist() == [[0, 0, shot.width, shot.height] for shot in WIDE]


def test_yolo_outlines_and_photos_without_labels(tmp_path, shapes):
    write_yolo(shapes, tmp_path / "mine/images", tmp_path / "mine/labels")
    texts = sorted((tmp_path / "mine/labels").iterdir())
    texts[0].write_text("2 0.1 0.2 0.5 0.3 0.3 0.6\n")
    texts[1].unlink()
    photos = load_shapes(tmp_path / "mine").photos
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
def test_yolo_faults_name_file_and_line(tmp_path, shapes, line, message):
    write_yolo(shapes, tmp_path / "mine/images", tmp_path / "mine/labels")
    path = sorted((tmp_path / "mine/labels").iterdir())[0]
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=f"{path.name}: {message}"):
        load_shapes(tmp_path / "mine")
