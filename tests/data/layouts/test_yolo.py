"""YOLO: ambiguous labels, missing splits, and files that are not quite labels."""

import re

import numpy as np
import pytest

from data.dataset.errors import DataError
from scripts import new_config
from tests.helpers.exports import NAMES, SHOTS, Shot, load, numbers_of, photos, texts, write, xmls

pytestmark = pytest.mark.usefixtures("bare_machine")

WIDE = [Shot(f"photo-{i:02d}", 200, 100, ()) for i in range(3)]


def labelled(folder, text: str, names: str = "names: [cat]\n"):
    """Photos of 200 × 100 pixels, each with the same labels."""
    photos(folder / "images", WIDE)
    for shot in WIDE:
        write(folder / f"labels/{shot.name}.txt", text)
    if names:
        write(folder / "data.yaml", names)
    return folder


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


def divided(folder):
    photos(folder / "images")
    texts(folder / "labels")
    write(folder / "classes.txt", "\n".join(NAMES))
    for name, shots in (("train", SHOTS[:6]), ("val", SHOTS[6:])):
        write(folder / f"{name}.txt", "".join(f"images/{shot.name}.jpg\n" for shot in shots))
    return folder


def test_missing_photos_in_lists_are_counted(tmp_path):
    folder = divided(tmp_path / "mine")
    write(folder / "train.txt", "".join(f"images/photo-{number:02d}.jpg\n" for number in (0, 1, 2, 3, 77, 78)))
    loaded = load(folder, "train")
    assert numbers_of(loaded) == {0, 1, 2, 3}
    assert loaded.notes == (
        f"{folder}/train.txt: 2 of 6 lines do not name a photo and were left out",
        f"{folder}: 2 photos with labels belong to no split and were left out",
    )


def test_a_list_of_missing_photos_is_refused(tmp_path, capsys):
    folder = divided(tmp_path / "mine")
    write(folder / "val.txt", "images/photo-06.png\nimages/photo-07.png\n")
    assert new_config.main([str(folder), "--output", str(tmp_path / "a.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "val.txt: none of its 2 lines names a photo (images/photo-06.png, ...); fix or remove the file" in line
    assert numbers_of(load(folder, "train")) == set(range(6))


@pytest.mark.parametrize("entry", ["vall/images", "vall.txt", "[val/images, vall/images]"])
def test_a_missing_folder_in_data_yaml_is_refused(tmp_path, entry, capsys):
    folder = tmp_path / "mine"
    for part, shots in (("train", SHOTS[:6]), ("val", SHOTS[6:])):
        photos(folder / part / "images", shots)
        texts(folder / part / "labels", shots)
    write(folder / "data.yaml", f"train: train/images\nval: {entry}\ntest: test/images\nnames: [{', '.join(NAMES)}]\n")
    assert new_config.main([str(folder), "--output", str(tmp_path / "a.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"data\.yaml: val: vall(/images|\.txt): no such folder or list of photos; fix or remove the entry", line)
    write(folder / "data.yaml", f"train: train/images\nval: val/images\ntest: test/images\nnames: [{', '.join(NAMES)}]\n")
    assert new_config.main([str(folder), "--output", str(tmp_path / "a.yaml")]) == 0
    assert "6 photos to train on, 4 to evaluate on" in capsys.readouterr().out


@pytest.mark.parametrize("number", [300, 3000, 10**8])
def test_without_names_an_outlying_number_is_refused(tmp_path, number, capsys):
    folder = labelled(tmp_path / "mine", "0 0.5 0.5 0.2 0.2\n\n", names="")
    write(folder / "labels/photo-01.txt", f"1 0.5 0.5 0.2 0.2\n\n{number} 0.5 0.5 0.1 0.1\n")
    assert new_config.main([str(folder), "--output", str(tmp_path / "a.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"photo-01.txt: line 3: class {number}, but {number - 2} lower numbers have no objects and no file has names" in line
    write(folder / "data.yaml", f"names: {{0: cat, 1: dog, {number}: red kite}}")
    assert load(folder).photos.labels.tolist() == [0, 1, 2, 0]


def test_without_names_numbers_may_leave_gaps(tmp_path, capsys):
    """A few of COCO's 80 classes have gaps."""
    folder = labelled(tmp_path / "mine", "0 0.5 0.5 0.2 0.2\n79 0.5 0.5 0.1 0.1\n", names="")
    assert new_config.main([str(folder), "--output", str(tmp_path / "a.yaml")]) == 0
    assert "class 79 (3)" in capsys.readouterr().out


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
def test_labels_in_other_encodings_are_reported_with_file_and_line(tmp_path, encoding, folder, capsys):
    """Windows' PowerShell writes UTF-16."""
    photos(tmp_path / "mine/images", WIDE)
    for shot in WIDE:
        path = tmp_path / f"mine/{folder}/{shot.name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes("0 0.25 0.5 0.3 0.4\n0 0.25 0.5 0.3 0.5 \xa0\n".encode(encoding))
    write(tmp_path / "mine/classes.txt", "cat")
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 2
    message = "line 2: is not UTF-8 text" if encoding == "latin-1" else "line 1: is UTF-16 or not text"
    assert re.search(rf"/photo-0\d\.txt: {message}", capsys.readouterr().err)


@pytest.mark.parametrize("text", ["car 10 20 110 220\n", "<object>", "[[1, 2, 3, 4]]"])
def test_any_faulty_file_in_labels_is_reported_with_file_and_line(tmp_path, text, capsys):
    folder = labelled(tmp_path / "mine", text)
    assert new_config.main([str(folder), "--output", str(tmp_path / "a.yaml")]) == 2
    assert ".txt: line 1: expected numbers" in capsys.readouterr().err.splitlines()[0]


def test_a_box_may_extend_two_pixels_over_both_edges(tmp_path):
    photos(tmp_path / "mine/images", WIDE)
    for shot in WIDE:
        write(tmp_path / f"mine/labels/{shot.name}.txt", f"0 0.5 0.5 {1 + 4 / shot.width} {1 + 4 / shot.height}\n")
    write(tmp_path / "mine/classes.txt", "cat")
    loaded = load(tmp_path / "mine", classes=["cat"])
    assert loaded.photos.boxes.tolist() == [[0, 0, shot.width, shot.height] for shot in WIDE]


NOTES = '{"categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}]}'


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"data.yaml": "names: [cat, dog]", "classes.txt": "dog\ncat"},
            "classes.txt: class 0 is 'dog', but 'cat' in data.yaml",
        ),
        ({"data.yaml": "names: [cat, dog]", "labels/classes.txt": "dog\ncat"}, "classes.txt: class 0 is 'dog', but 'cat' in"),
        ({"data.yaml": "names: {0: cat, 1: dog}", "notes.json": NOTES}, "notes.json: class 0 is 'dog', but 'cat' in data.yaml"),
        ({"classes.txt": "cat\ndog", "notes.json": NOTES}, "notes.json: class 0 is 'dog', but 'cat' in classes.txt"),
        ({"a.yaml": "names: [cat, dog]", "b.yaml": "names: [dog, cat]"}, "b.yaml: class 0 is 'dog', but 'cat' in a.yaml"),
        ({"data.yaml": "names: [cat, dog]\nnc: 3"}, "data.yaml: nc says 3 classes, names has 2; fix the wrong one"),
        ({"data.yaml": "names: {0: cat, 1: dog, 01: cat}"}, "data.yaml: names: class 1 is 'dog' and 'cat'; remove one of them"),
        ({"data.yaml": "names: {0: cat, 1: dog}\nnc: two"}, "data.yaml: nc says two classes, names has 2"),
        ({"data.yaml": "names: {0: cat, 0: dog}"}, "data.yaml: cannot be read (duplicate key '0'"),
        (
            {"data.yaml": "names: [cat, dog]", "classes.txt": "cat\ndog\nfox"},
            "classes.txt: class 2 is 'fox', but data.yaml has no such class; fix or remove",
        ),
        ({"obj.data": "classes = 3\n", "obj.names": "cat\ndog"}, "obj.data: says classes = 3, but there are 2 names; fix"),
        (
            {"a/b.data": "classes=1\nnames=x/b.names", "a/b.names": "cat\ndog"},
            "b.data: says classes = 1, but there are 2 names",
        ),
        ({"data.yaml": f"names: [cat]\nnc: {'9' * 5000}"}, f"data.yaml: nc says {'9' * 20}...{'9' * 20} classes, names has 1"),
        (
            {"data.yaml": f"names: [cat]\nkpt_shape: [{'9' * 5000}, 3]"},
            "kpt_shape: expected two numbers, got ['999999999999...9",
        ),
        ({"data.yaml": f"names: [cat]\nkpt_shape: [{'1, ' * 999}1]"}, "got ['1', '1', '1', '1', '1', '1', ...]"),
        (
            {"data.yaml": "names: [cat, [dog, wolf]]"},
            "data.yaml: names: expected text as the name of 1, got a list",
        ),
    ],
)
def test_contradictory_names_are_refused(tmp_path, files, message, capsys):
    folder = labelled(tmp_path / "mine", "0 0.5 0.5 0.2 0.2\n", names="")
    for name, text in files.items():
        write(folder / name, text)
    assert new_config.main([str(folder), "--output", str(tmp_path / "a.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "files",
    [
        {"data.yaml": "names: [dog, cat]\nnc: 2", "classes.txt": "dog\ncat\n", "notes.json": NOTES},
        {"data.yaml": "names: {0: dog, 1: cat}\nnc:", "other.yaml": "names: !!python/name:re.sub\n"},
        {"data.yaml": "names: ['dog', '']\nnc: 2", "notes.json": "names"},
        {"notes.json": NOTES},
        {"obj.data": "classes = 2\ntrain = train.txt\nnames = data/obj.names\n", "obj.names": "dog\ncat\n"},
        {"voc.data": "classes= 2\nnames = D:\\x\\voc.names", "voc.names": "dog\ncat\n", "coco.names": "person\n"},
        {"data.yaml": "names: [dog, cat]", "obj.data": b"\xff\x00".decode("latin-1")},
    ],
)
def test_consistent_names_are_accepted(tmp_path, files):
    folder = labelled(tmp_path / "mine", "0 0.5 0.5 0.2 0.2\n", names="")
    for name, text in files.items():
        write(folder / name, text)
    assert load(folder, classes=["cat", "dog"]).photos.labels.tolist() == [1, 1, 1]


def test_text_files_beside_photos_need_not_be_labels(tmp_path):
    photos(tmp_path / "mine", WIDE)
    for shot in WIDE:
        write(tmp_path / f"mine/{shot.name}.txt", "A cat on a mat, in 1999.\n")
    with pytest.raises(DataError, match="unknown dataset format"):
        load(tmp_path / "mine")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("{mine}/images/train", "{mine}/images/val"),
        ("/home/someone/dev/test/mine/images/train", "/home/someone/dev/test/mine/images/val"),
        ("C:\\Users\\me\\dev\\mine\\images\\train", "C:\\Users\\me\\dev\\mine\\images\\val"),
    ],
)
def test_absolute_paths_are_found_below_any_folder(tmp_path, train, val):
    folder = tmp_path / "dev/eval/mine"
    for part, shots in (("train", SHOTS[:7]), ("val", SHOTS[7:])):
        photos(folder / f"images/{part}", shots)
        texts(folder / f"labels/{part}", shots)
    content = f"train: {train}\nval: {val}\nnames: [{', '.join(NAMES)}]\n".replace("{mine}", str(folder))
    write(folder / "data.yaml", content)
    assert numbers_of(load(folder, "train")) == set(range(7))
    assert numbers_of(load(folder, "val")) == {7, 8, 9}


@pytest.mark.parametrize(
    "entries",
    [
        "train: images\nval: images\ntest: test/images",
        "train: images\nval: images\ntest: null",
        "train: images\nval: null\ntest: ~",
        "train: ../images\nval: ../valid/images\ntest: ../test/images",  # Roboflow always writes all three
        "train: images\nval: val.txt",
    ],
)
def test_photos_are_divided_if_the_named_splits_are_empty(tmp_path, entries, capsys):
    photos(tmp_path / "mine/images")
    texts(tmp_path / "mine/labels")
    write(tmp_path / "mine/val.txt", "")
    write(tmp_path / "mine/data.yaml", f"{entries}\nnames: [{', '.join(NAMES)}]\n")
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 0
    shown = capsys.readouterr().out
    counts = re.search(r"(\d+) photos to train on, (\d+) to evaluate on", shown)
    assert counts is not None
    assert int(counts[1]) + int(counts[2]) == len(SHOTS)
    assert ("no such folder" in shown) == ("valid" in entries)


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
