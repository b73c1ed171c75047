"""Pairing of photos and labels whose spellings differ, and notes about unpaired ones."""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.dataset.errors import DataError
from data.layouts.find import find_format
from ssd.config.file import parse_config
from ssd.config.schema import ConfigError, SourceConfig
from ssd.deploy.inputs import find_inputs
from ssd.system.errors import UsageError
from tests.helpers.annotations import load, load_sources
from tests.helpers.exports import NAMES, SHOTS, assert_true, numbers_of, photos, texts, write, xmls
from tests.helpers.voc import item, pixels_of, xml

ONE = "café n°1"  # é as one letter
OTHER = unicodedata.normalize("NFD", ONE)  # and as two, as on macOS


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", pixels_of(path.name))[1].tobytes())


def yolo(folder: Path, photos: str | list[str], labels: str | list[str], suffix: str = ".jpg") -> Path:
    for name in photos:
        photo(folder / f"images/{name}{suffix}")
    for name in labels:
        write(folder / f"labels/{name}.txt", "0 0.5 0.5 0.2 0.3\n")
    write(folder / "classes.txt", "cat\n")
    return folder


def voc(folder: Path, photos: str | list[str], labels: str | list[str], ids: str | None = None) -> Path:
    for name in photos:
        photo(folder / f"JPEGImages/{name}.jpg")
    for name in labels:
        write(folder / f"Annotations/{name}.xml", xml(item(), size=None))
    if ids is not None:
        write(folder / "ImageSets/Main/train.txt", ids)
    return folder


def coco(folder: Path, photos: str | list[str], names: list[str], num_labelled: int) -> Path:
    for name in photos:
        photo(folder / f"images/{name}.jpg")
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 30, 40]} for i in range(num_labelled)]
    images = [{"id": i, "file_name": name, "width": 100, "height": 80} for i, name in enumerate(names)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    write(folder / "annotations.json", json.dumps(content))
    return folder


@pytest.mark.parametrize("of_files, of_names", [(ONE, OTHER), (OTHER, ONE)])
def test_names_match_in_either_unicode_form(tmp_path, of_files, of_names):
    folders = [
        voc(tmp_path / "a", [of_files], [of_names]),
        voc(tmp_path / "b", [of_files], [of_files], ids=of_names),
        yolo(tmp_path / "c", [of_files], [of_names]),
        coco(tmp_path / "d", [of_files], [f"{of_names}.jpg"], 1),
        yolo(tmp_path / "e", [of_files], [of_files]),
        voc(tmp_path / "f", [of_files], ["1"]),
    ]
    write(tmp_path / "e/train.txt", f"images/{of_names}.jpg\n")
    content = xml(item(), size=None).replace("<annotation>", f"<annotation><filename>{of_names}.jpg</filename>")
    write(tmp_path / "f/Annotations/1.xml", content)
    for folder in folders:
        photos = load(folder, "train" if folder.name in "be" else "all").photos
        assert (len(photos), len(photos.labels)) == (1, 1)
        assert Path(photos.path(0)).name == f"{of_files}.jpg"
        assert find_format(folder)[1].class_counts().total() == 1


def test_files_that_differ_only_in_unicode_form_stay_apart(tmp_path):
    photos = load(yolo(tmp_path / "a", [ONE, OTHER], [ONE, OTHER])).photos
    assert {Path(photos.path(i)).name for i in range(2)} == {f"{ONE}.jpg", f"{OTHER}.jpg"}


def test_quoted_ids_from_datumaro(tmp_path):
    names = ["my cat", 'the "best" cat', '"', "plain"]
    folder = voc(tmp_path / "a", names, names, ids='"my cat"\n"the \\"best\\" cat"\n"\nplain\n')
    write(folder / "ImageSets/Main/val.txt", '"my cat"  1\nplain -1\n')
    assert len(load(folder, "train").photos) == 4
    assert len(load(folder, "val").photos) == 2
    folder = yolo(tmp_path / "b", ["my cat"], ["my cat"])
    write(folder / "train.txt", '"images/my cat.jpg"\n')
    assert len(load(folder, "train").photos.labels) == 1


def test_single_quotes_and_names_with_quotes(tmp_path):
    folder = voc(tmp_path / "a", ["my cat", "it's", "'so'"], ["my cat", "it's", "'so'"], ids="'my cat'\n'it\\'s'\n'so'\n")
    assert len(load(folder, "train").photos) == 3
    folder = yolo(tmp_path / "b", ["my cat", "'so'"], ["my cat", "'so'"])
    write(folder / "train.txt", "'images/my cat.jpg'\nimages\\'so'.jpg\n")
    assert len(load(folder, "train").photos) == 2


def test_classes_folders_and_splits_match_in_either_unicode_form(tmp_path):
    name = unicodedata.normalize("NFD", "Bär")
    of_voc = voc(tmp_path / OTHER, "a", "a", ids="a\n")
    (of_voc / "ImageSets/Main/train.txt").rename(of_voc / f"ImageSets/Main/{OTHER}.txt")
    write(of_voc / "Annotations/a.xml", xml(item(name), size=None))
    of_yolo = yolo(tmp_path / "b", "a", "a")
    write(of_yolo / "classes.txt", f"{name}\n")
    write(of_yolo / "data.yaml", "names: [Bär]\n")
    of_coco = coco(tmp_path / "c", "a", ["a.jpg"], 1)
    write(of_coco / "annotations.json", (of_coco / "annotations.json").read_text().replace('cat"', f'{name}"'))
    sources = [SourceConfig(path=ONE, split=ONE), SourceConfig(path=of_yolo.name), SourceConfig(path=of_coco.name)]
    assert len(load_sources(sources, tmp_path, ["Bär"]).photos.labels) == 3
    with pytest.raises(ConfigError, match="'Bär' is listed 2 times"):
        parse_config({"data": {"classes": ["Bär", name], "train": [{"path": "-"}], "val": [{"path": "-"}]}})


def test_labels_named_after_the_photo_with_its_suffix(tmp_path):
    folder = yolo(tmp_path / "a", ["a", "b", "c.jpg"], ["a.jpg", "b.JPG", "c.jpg", "d.png"])
    photo(folder / "images/a.png")
    write(folder / "labels/a.png.txt", "0 0.5 0.5 0.2 0.3\n0 0.5 0.5 0.1 0.3\n")
    photo(folder / "images/d.jpg")  # converted later
    photos = load(folder).photos
    counts = {Path(photos.path(i)).name: int(n) for i, n in enumerate(np.diff(photos.starts))}
    assert counts == {"a.jpg": 1, "a.png": 2, "b.jpg": 1, "c.jpg.jpg": 1, "d.jpg": 1}
    folder = voc(tmp_path / "b", "ab", ["a.jpg", "b.jpg"], ids="a\nb.jpg\n")
    assert len(load(folder, "train").photos.labels) == 2


@pytest.mark.parametrize(
    "make, labelled, message",
    [
        (yolo, "abcd", "2 of 6 photos have no label file and count as photos without objects"),
        (yolo, "ab", "4 of 6 photos have no label file and count as photos without objects"),
        (voc, "abcd", "has no annotation file; 2 of 6 photos were left out for this"),
        (voc, "ab", "has no annotation file; 4 of 6 photos were left out for this"),
    ],
)
def test_photos_without_a_label_are_counted(tmp_path, make, labelled, message):
    (note,) = load(make(tmp_path / "a", "abcdef", labelled)).notes
    assert message in note
    assert note.startswith("warning: ") == (labelled == "ab")


def test_coco_images_without_annotations_and_unlisted_photos_are_counted(tmp_path):
    empty, bare = load(coco(tmp_path / "a", "abcdef", ["a.jpg", "b.jpg", "c.jpg"], 1)).notes
    assert "2 of 3 images have no annotation and count as photos without objects" in empty
    assert "d.jpg: is not listed under images; 3 such photos were left out" in bare
    assert [empty.startswith("warning: "), bare.startswith("warning: ")] == [True, False]


def test_labels_without_a_photo_are_counted(tmp_path):
    folder = yolo(tmp_path / "a", "ab", "abcde")
    for name in "cde":
        write(folder / f"images/{name}.heic", "")
    lonely, unread = load(folder).notes
    assert lonely == f"warning: {folder}/labels/c.txt: has no photo; 3 such files were left out"
    assert unread.startswith(f"warning: {folder}: 3 .heic skipped as unsupported; convert HEIC to JPEG by")
    folder = tmp_path / "b"
    for part in ("train", "val"):
        voc(folder / part, [f"{part}{i}" for i in range(3)], [f"{part}{i}" for i in range(5)])
    (note,) = load(folder, "train").notes
    assert note == f"{folder}/train/Annotations/train3.xml: has no photo; 2 such annotation files were left out"


def test_unknown_names_in_voc_lists_are_counted(tmp_path):
    folder = voc(tmp_path / "a", "abcdef", "abvwxyz", ids="a\nb\n")
    photo(folder / "SegmentationClass/a.jpg")  # a mask, which no list names
    bare, lonely = load(folder, "train").notes
    assert bare == f"warning: {folder}/JPEGImages/c.jpg: has no annotation file; 4 of 6 photos were left out for this"
    assert lonely == f"warning: {folder}/Annotations/v.xml: has no photo; 5 such annotation files were left out"


def test_coco_reports_photos_of_unsupported_formats(tmp_path):
    folder = coco(tmp_path / "a", "a", ["a.jpg", "b.heic"], 1)
    write(folder / "images/b.heic", "")
    with pytest.raises(DataError, match=r"b\.heic: no such photo, named in .* \(1 \.heic skipped as unsupported; convert HEIC"):
        load(folder)


def test_detection_counts_the_photos_it_skips(tmp_path):
    for name in ("a.heic", "below/b.HEIC", "c.CR2", "notes.txt", "._d.heic"):
        write(tmp_path / "photos" / name, "")
    with pytest.raises(UsageError, match=r"no photos or videos \(2 \.heic, 1 \.cr2 skipped as unsupported; convert HEIC"):
        find_inputs([str(tmp_path / "photos")])
    with pytest.raises(UsageError, match=r"a\.heic: 1 \.heic skipped as unsupported; convert HEIC"):
        find_inputs([str(tmp_path / "photos/a.heic")])
    photo(tmp_path / "photos/e.jfif")
    inputs = find_inputs([str(tmp_path / "photos")])
    assert [entry.name for entry in inputs.photos] == ["e.jfif"]
    assert +inputs.unread == Counter({".heic": 2, ".cr2": 1})


def test_all_photos_of_nested_folders_are_used(tmp_path):
    for number, shot in enumerate(SHOTS):
        photos(tmp_path / f"mine/images/day {number % 3}", [shot])
        texts(tmp_path / f"mine/labels/day {number % 3}", [shot])
    write(tmp_path / "mine/classes.txt", "\n".join(NAMES))
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


def test_a_photo_of_another_split_is_not_used_instead(tmp_path):
    for part, shots in (("train", SHOTS[:6]), ("test", SHOTS[6:])):
        photos(tmp_path / f"mine/pictures/{part}", shots)
        xmls(tmp_path / f"mine/marks/{part}", shots)
    assert numbers_of(load(tmp_path / "mine", "train")) == set(range(6))
    xmls(tmp_path / "mine/marks/train", SHOTS[8:9])
    with pytest.raises(DataError, match=f"{SHOTS[8].name}: no photo of that name"):
        load(tmp_path / "mine")
