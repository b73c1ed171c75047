"""VOC annotations: boxes, flags and faults."""

import gc
import io
from pathlib import Path

import pytest

from data.dataset.errors import DataError
from data.layouts.voc_annotation import is_annotation, parse_annotation
from tests.helpers.annotations import load
from tests.helpers.exports import photos, xmls
from tests.helpers.voc import item, xml

CLASSES = {"cat": 0, "dog": 1}


def parse(tmp_path: Path, text: str, **options):
    path = tmp_path / "a.xml"
    path.write_text(text, encoding="utf-8")
    return parse_annotation(path, CLASSES, **options)


def test_corners_are_inclusive_and_counted_from_one(tmp_path):
    found = parse(tmp_path, xml(item(box=(1, 1, 100, 80)), item("dog", (11.5, 21, 30, 40.25))))
    assert found.boxes.tolist() == [[0, 0, 100, 80], [10.5, 20, 30, 40.25]]
    assert found.labels.tolist() == [0, 1]
    assert (found.width, found.height) == (100, 80)
    assert (found.clipped, found.empty) == ((), ())


def test_truncated_may_be_missing_or_unspecified(tmp_path):
    texts = ("1", "0", "Unspecified")
    items = [item(box=(i, 21, 30, 40), extra=f"<truncated>{text}</truncated>") for i, text in enumerate(texts, start=1)]
    found = parse(tmp_path, xml(*items, item()))
    assert found.truncated.tolist() == [1, 0, -1, -1]


def test_difficult_may_be_missing_and_parts_are_not_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    marked = [item(box=(i, 21, 30, 40), extra=f"<difficult>{i}</difficult>") for i in (1, 0)]
    found = parse(tmp_path, xml(item(extra=part), *marked))
    assert found.boxes[0].tolist() == [10, 20, 30, 40]
    assert found.difficult.tolist() == [False, True, False]


TURNED = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes>"


@pytest.mark.parametrize(
    ("extra", "box", "angle"),
    [
        ("<robndbox><cx>20</cx><cy>30</cy><w>9</w><h>9</h><angle>0.3</angle></robndbox>", None, "0.3"),
        ("<angle>0.3</angle>", (11, 21, 30, 40), "0.3"),
        (TURNED.format("30.0"), (11, 21, 30, 40), "30.0"),
        (TURNED.format("0.0"), (11, 21, 30, 40), None),
        ("<angle>0.0</angle>", (11, 21, 30, 40), None),
    ],
)
def test_rotated_boxes_are_refused(tmp_path, extra, box, angle):
    text = xml(item(box=box, extra=extra))
    if angle is None:
        assert parse(tmp_path, text).boxes.tolist() == [[10, 20, 30, 40]]
        return
    with pytest.raises(DataError, match=rf"object 1 \(cat\): has a rotated box \(angle {angle}\), but SSD needs upright ones"):
        parse(tmp_path, text)


def test_without_objects(tmp_path):
    found = parse(tmp_path, xml())
    assert found.boxes.shape == (0, 4)
    assert found.labels.shape == found.difficult.shape == (0,)


def test_clipped_and_dropped_boxes_are_counted(tmp_path):
    found = parse(tmp_path, xml(item(box=(-20, 5, 400, 60)), item(box=(30, 30, 30, 50)), item("dog")))
    assert found.boxes.tolist() == [[0, 4, 100, 60], [10, 20, 30, 40]]
    assert found.labels.tolist() == [0, 1]
    assert found.clipped == (f"{tmp_path / 'a.xml'}: object 1 (cat)",)
    assert found.empty == (f"{tmp_path / 'a.xml'}: object 2 (cat)",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<annotation>", "not valid XML"),
        ("", "not valid XML"),
        ("<svg/>", "expected <annotation>"),
        (xml(item(name=None)), "object 1: has no name"),
        (xml(item(), item(box=None)), "object 2 (cat): has no box"),
        (xml(item(box=("a", 1, 2, 3))), "xmin is not a number: 'a'"),
        (xml(item(box=(1, 1, 2))), "ymax is missing"),
        (xml(item(box=("nan", 1, 2, 3))), "xmin is not a finite number"),
        (xml(item(box=(30, 1, 2, 3))), "inverted"),
        (xml(item(box=("9" * 5000, 1, 2, 3))), f"xmin is not a finite number: '{'9' * 19}...{'9' * 19}'"),
        (xml("<a>" * 9000 + "</a>" * 9000), "is not valid XML (nested too deep)"),
        (xml(item("cta")), "unknown class 'cta'; did you mean 'cat'?"),
        (xml(item("Dog")), "did you mean 'dog'?"),
        (xml(item("zebra")), "known classes: cat, dog"),
    ],
)
def test_faults_name_file_and_object(tmp_path, text, expected):
    with pytest.raises(DataError) as error:
        parse(tmp_path, text)
    (line,) = str(error.value).splitlines()
    assert expected in line
    assert "a.xml" in line


def test_other_classes_can_be_ignored(tmp_path):
    assert parse(tmp_path, xml(item("zebra"), item(" dog ")), ignore_others=True).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "expected"), [(xml(item()), True), ("<html></html>", False), ("<annotation", False), ("", False)]
)
def test_an_annotation_is_recognised_by_its_root_element(tmp_path, text, expected):
    """Its file is closed at once, without waiting for the garbage collector."""
    path = tmp_path / "a.xml"
    path.write_text(text, encoding="utf-8")
    gc.disable()
    try:
        assert is_annotation(path) is expected
        files = [item for item in gc.get_objects() if type(item) is io.BufferedReader and not item.closed]
        assert [file.name for file in files if str(file.name) == str(path)] == []
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Unspecified", False), ("False", False), ("0", False), ("", False), ("1", True), ("True", True), (" yes ", True)],
)
def test_only_a_clear_yes_marks_an_object_difficult(tmp_path, text, expected):
    photos(tmp_path / "mine/JPEGImages")
    xmls(tmp_path / "mine/Annotations", extra=f"<difficult>{text}</difficult>")
    assert set(load(tmp_path / "mine").photos.difficult.tolist()) == {expected}
