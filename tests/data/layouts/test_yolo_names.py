"""Names of YOLO's class numbers, and files that contradict each other."""

import pytest

from data.dataset.errors import DataError
from tests.helpers.annotations import load
from tests.helpers.exports import NAMES, PARTS, SHOTS, assert_true, labelled, photos, texts, write, yolo


@pytest.mark.parametrize(
    "names",
    [
        "names: {1: cat, 2: dog, 3: red kite}",
        'names: {"3": red kite, "2": dog, "1": cat}',
        "names: ['', cat, dog, red kite]",
        "names:\n  10: fox\n  2: dog\n  3: red kite\n  1: cat\n",
    ],
)
def test_yolo_names_keep_their_numbers(tmp_path, names):
    yolo(tmp_path / "mine", names)
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


def test_blank_lines_in_classes_txt_keep_the_numbers(tmp_path):
    yolo(tmp_path / "mine", "")
    write(tmp_path / "mine/classes.txt", "\ncat\ndog\nred kite\n\n")
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


def test_files_that_number_the_classes_differently_are_refused(tmp_path):
    for part, names in (("train", NAMES), ("valid", NAMES[::-1])):
        photos(tmp_path / "mine" / part, PARTS[part])
        texts(tmp_path / "mine" / part, PARTS[part])
        write(tmp_path / f"mine/{part}/classes.txt", "\n".join(names))
    with pytest.raises(DataError, match=r"valid/classes\.txt: class 0 is 'red kite', but 'cat' in train/classes\.txt"):
        load(tmp_path / "mine", "train")


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
        ({"data.yaml": "names: [cat, [dog, wolf]]"}, "data.yaml: names: expected text as the name of 1, got a list"),
    ],
)
def test_contradictory_names_are_refused(tmp_path, files, message, proposed):
    folder = labelled(tmp_path / "mine", "0 0.5 0.5 0.2 0.2\n", names="")
    for name, text in files.items():
        write(folder / name, text)
    (line,) = proposed(folder, code=2).splitlines()
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
