"""Detection of a folder's format, and folders without a known one."""

import json
import re
from collections import Counter
from typing import get_args

import cv2
import numpy as np
import pytest

from data.dataset.conventions import CONVENTIONS
from data.dataset.errors import DataError
from data.layouts.find import FORMATS
from ssd.config.file import load_config
from ssd.config.schema import DataConfig
from tests.helpers.annotations import load
from tests.helpers.exports import NAMES, SHOTS, assert_true, coco, dump, kangaroo, photos, texts, write, xmls, yolo
from tests.helpers.formats import load_shapes


def test_the_format_with_more_photos_is_used_with_a_note(tmp_path):
    photos(tmp_path / "mine/images")
    xmls(tmp_path / "mine/annotations")
    texts(tmp_path / "mine/labels", SHOTS[:3])
    write(tmp_path / "mine/classes.txt", "\n".join(NAMES))
    loaded = load(tmp_path / "mine")
    assert assert_true(loaded.photos) == set(range(len(SHOTS)))
    assert "has boxes in more than one format (VOC for 10, YOLO for 3 photos); using VOC" in loaded.notes[0]
    assert "Photos with boxes only in the other count as photos without objects" in loaded.notes[0]
    forced = load(tmp_path / "mine", format="yolo").photos
    assert np.diff(forced.starts).tolist() == [len(shot.objects) for shot in SHOTS[:3]] + [0] * 7


@pytest.mark.parametrize(
    "name", ["no", "007", "1.10", "1e3", "US$5_$x^", "a, b", "猫", "ключ & <замок>", "null", "[x]", "it's"]
)
def test_class_names_keep_their_spelling(tmp_path, name, proposed):
    """In each format, through new_config.py and the configuration."""
    names = [name, "dog", "red kite"]
    quoted = json.dumps(name, ensure_ascii=False) if set(name) & set(",[]'&") else name
    yolo(tmp_path / "yolo", f"names: {{1: {quoted}, 2: dog, 3: red kite}}\n")
    photos(tmp_path / "coco/images")
    content = coco()
    content["categories"][0]["name"] = name
    dump(tmp_path / "coco/a.json", content)
    kangaroo(tmp_path / "voc")
    written = name.replace("&", "&amp;").replace("<", "&lt;")
    for path in (tmp_path / "voc/annots").iterdir():
        path.write_text(path.read_text().replace("<name>cat", f"<name>{written}"), encoding="utf-8")
    for layout in ("voc", "coco", "yolo"):
        proposed(tmp_path / layout, "--overwrite")
        assert sorted(load_config(tmp_path / "a.yaml").data.class_names) == sorted(names)
        loaded = load(tmp_path / layout, classes=names).photos
        counts = Counter(label for shot in SHOTS for label, *_ in shot.objects)
        assert np.bincount(loaded.labels).tolist() == [counts[each] for each in range(3)]


LABELME = {f"{shot.name}.json": f'{{"shapes": [], "imagePath": "{shot.name}.jpg"}}' for shot in SHOTS}
HEIC = {"photo-01.heic": "photo"}
NO_OBJECT = r"no object was found in it, read as VOC\. Found:"
TABLE = {"data/train_labels.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n"}  # as in TensorFlow's tutorials


@pytest.mark.parametrize(
    ("photos_in", "xmls_in", "files", "message"),
    [
        ("images", None, {"a.zip": "PK"}, r"Found: 10 photos, 1 \.zip; folders: images\. .*Unpack the \.zip first"),
        ("images", None, TABLE, r"Found: 10 photos, 1 \.csv; .*Export or convert .* CSV tables \(TensorFlow tutorials\)"),
        ("", None, LABELME, r"Found: 10 photos, 10 \.json; .*Export or convert .* the JSON files of labelme"),
        (
            None,
            "",
            {"photo-01.heic": "photo"},
            r"Found: 10 \.xml, 1 \.heic; .*1 \.heic skipped as unsupported; convert HEIC to JPEG by",
        ),
        (None, None, {}, r"Found: no files; .*no supported photos"),
        ("VOC2012/JPEGImages", None, {}, rf"{NO_OBJECT} 10 photos; .*VOC needs an XML file per photo"),
        (None, "Annotations", {}, rf"{NO_OBJECT} 10 \.xml; .*no supported photos"),
    ],
)
def test_unusable_folders_are_refused_with_advice(tmp_path, photos_in, xmls_in, files, message, proposed):
    folder = tmp_path / "mine"
    folder.mkdir()
    if photos_in is not None:
        photos(folder / photos_in)
    if xmls_in is not None:
        xmls(folder / xmls_in)
    for name, text in files.items():
        write(folder / name, text)
    (line,) = proposed(tmp_path / "mine", code=2).splitlines()
    assert re.search(message, line)


@pytest.mark.parametrize("data_format", [None, "voc", "coco", "yolo"])
def test_a_missing_folder_is_reported_for_any_format(tmp_path, data_format):
    with pytest.raises(DataError, match=r"none: no such folder; check data\.root"):
        load_shapes(tmp_path / "none", format=data_format)


def test_a_folder_of_unknown_format(tmp_path):
    (tmp_path / "mine").mkdir()
    cv2.imwrite(str(tmp_path / "mine/a.jpg"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "mine/boxes").mkdir()
    (tmp_path / "mine/boxes/a.csv").write_text("a.jpg,1,2,3,4\n")
    (tmp_path / "mine/a.json").write_text("{}")
    text = r"mine: unknown dataset format\. Found: 1 photos, 1 \.json, 1 \.csv; folders: none\. VOC needs .*COCO needs .*YOLO"
    with pytest.raises(DataError, match=text):
        load_shapes(tmp_path / "mine")


def test_the_configuration_accepts_every_format():
    (values, _) = get_args(DataConfig.model_fields["format"].annotation)
    assert set(get_args(values)) == set(FORMATS)
    assert {reader.convention for reader in FORMATS.values()} <= set(CONVENTIONS)
