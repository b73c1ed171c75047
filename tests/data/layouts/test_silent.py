"""Flaws in annotations that could go unnoticed: each is read correctly, fixed with a note, or refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import train
from data.dataset.class_names import similar_classes
from data.dataset.errors import DataError
from scripts import check_data, new_config
from ssd.autoconfig import proposal
from ssd.config.file import load_config
from tests.helpers.exports import (
    NAMES,
    PARTS,
    SHOTS,
    SMALL,
    Shot,
    assert_true,
    coco,
    dump,
    kangaroo,
    lines,
    load,
    numbers_of,
    photos,
    texts,
    write,
    xml,
    xmls,
)

pytestmark = pytest.mark.usefixtures("bare_machine")


def yolo(folder: Path, names: str) -> None:
    photos(folder / "images")
    texts(folder / "labels", first=1)
    write(folder / "data.yaml", names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Unspecified", False), ("False", False), ("0", False), ("", False), ("1", True), ("True", True), (" yes ", True)],
)
def test_only_a_clear_yes_marks_an_object_difficult(tmp_path, text, expected):
    photos(tmp_path / "mine/JPEGImages")
    xmls(tmp_path / "mine/Annotations", extra=f"<difficult>{text}</difficult>")
    assert set(load(tmp_path / "mine").photos.difficult.tolist()) == {expected}


@pytest.mark.parametrize("names", [("Train", "Validation"), ("TRAINING", "dev"), ("train", "valid"), ("train2017", "val2017")])
@pytest.mark.parametrize("pattern", ["{split}", "images/{split}", "{split}/images"])
def test_splits_have_many_names(tmp_path, names, pattern, capsys):
    for name, shots in zip(names, (SHOTS[:7], SHOTS[7:]), strict=True):
        photos(tmp_path / "mine" / pattern.format(split=name), shots)
        xmls(tmp_path / "mine" / pattern.format(split=name), shots)
    assert numbers_of(load(tmp_path / "mine", "train")) == set(range(7))
    assert numbers_of(load(tmp_path / "mine", "val")) == {7, 8, 9}
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 0
    assert "7 photos to train on, 3 to evaluate on" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("Test",), ("test", "val"), ("testing",)])
def test_test_photos_are_never_trained_on(tmp_path, names, capsys):
    for name in names:
        photos(tmp_path / "mine" / name, SHOTS)
        texts(tmp_path / "mine" / name, SHOTS)
    write(tmp_path / "mine/classes.txt", "\n".join(NAMES))
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 2
    assert "but no pair for training and evaluation" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"val_fraction needs a folder without its own splits; available:"):
        load(tmp_path / "mine", "train", val_fraction=0.2)


def test_an_ambiguous_split_is_refused(tmp_path):
    for name in ("train2014", "train2017"):
        photos(tmp_path / "mine" / name, SHOTS[:2])
        dump(tmp_path / f"mine/annotations/instances_{name}.json", coco(SHOTS[:2]))
    with pytest.raises(DataError, match="split train is ambiguous: train2014, train2017; name one"):
        load(tmp_path / "mine", "train")
    assert len(load(tmp_path / "mine", "train2017").photos) == 2


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


def test_classes_that_differ_only_in_spelling_are_reported(tmp_path, capsys):
    warnings = similar_classes({"WBC": 350, "wbc": 22, "RBC": 4000, "Platelets": 900, "Platelest": 2, "van1": 500, "van2": 3})
    assert [line.partition(" differ")[0].partition(" are spelled")[0] for line in warnings] == [
        "classes 'WBC' (350 objects) and 'wbc' (22)",
        "classes 'Platelets' (900 objects) and 'Platelest' (2)",
    ]
    kangaroo(tmp_path / "mine")
    path = next(iter(sorted((tmp_path / "mine/annots").iterdir())[5:]))
    path.write_text(path.read_text().replace("<name>cat", "<name>Cat").replace("<name>dog", "<name>DOG"))
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 0
    assert "differ only in case" in capsys.readouterr().out
    assert check_data.main([str(tmp_path / "a.yaml")]) == 0
    assert "differ only in case" in capsys.readouterr().out


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_part_gets_at_least_one_photo(tmp_path, count):
    photos(tmp_path / "mine/images", SHOTS[1 : count + 1])
    xmls(tmp_path / "mine/annots", SHOTS[1 : count + 1])
    for seed in range(20):
        parts = [numbers_of(load(tmp_path / "mine", split, val_fraction=0.2, seed=seed)) for split in ("train", "val")]
        assert all(parts)
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == set(range(1, count + 1))


def test_a_single_photo_is_not_divided(tmp_path):
    photos(tmp_path / "mine/images", SHOTS[:1])
    xmls(tmp_path / "mine/annots", SHOTS[:1])
    with pytest.raises(DataError, match="one photo cannot be divided"):
        load(tmp_path / "mine", "val", val_fraction=0.2)


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_fixed_boxes_are_reported(tmp_path, layout):
    far = 64 if layout == "yolo" else 500  # YOLO's numbers cannot be much larger than 1
    width = 1 if layout == "voc" else 0  # equal corners are a mistake
    objects = ((0, 2, 2, 2 + width, 9), (1, 5, 5, far, 9), (2, 5, 5, 9, 9))
    shot = Shot("photo-01", 62 if layout == "yolo" else 90, 90, objects)
    photos(tmp_path / "mine/images", [shot])
    {"voc": xmls, "yolo": texts, "coco": lambda folder, shots: dump(folder / "a.json", coco(shots))}[layout](
        tmp_path / "mine/annotations", [shot]
    )
    write(tmp_path / "mine/classes.txt", "\n".join(NAMES))
    loaded = load(tmp_path / "mine")
    place = {"voc": "photo-01.xml: object {}", "yolo": "photo-01.txt: line {}", "coco": "annotation {} of photo-01.jpg"}[layout]
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
    photos(tmp_path / "mine/images", [shot := Shot("photo-01", 62, 90, objects)])
    {"voc": xmls, "yolo": texts, "coco": lambda folder, shots: dump(folder / "a.json", coco(shots))}[layout](
        tmp_path / "mine/annotations", [shot]
    )
    write(tmp_path / "mine/classes.txt", "\n".join(NAMES))
    loaded = load(tmp_path / "mine")
    place = {"voc": "photo-01.xml: object {}", "yolo": "photo-01.txt: line {}", "coco": "annotation {} of photo-01.jpg"}[layout]
    (note,) = loaded.notes
    assert note.startswith("2 boxes repeat another of their class and were left out: ")
    assert [place.format(number) in note for number in (1, 2, 3, 4, 5)] == [False, False, True, False, True]
    assert loaded.photos.labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(loaded.photos.boxes[:, 3], [30, 30, 31], atol=1e-3)


def test_only_the_first_of_many_fixed_boxes_are_named(tmp_path):
    shots = [shot._replace(objects=((0, 5, 5, 6, 9), (0, 5, 5, 6, 9), (1, 5, 5, 29, 29))) for shot in SHOTS]
    photos(tmp_path / "mine/images")
    xmls(tmp_path / "mine/annots", shots)
    (note,) = load(tmp_path / "mine").notes
    assert note.startswith("20 boxes without area were left out: ")
    assert note.endswith("; and 17 more")
    assert note.count(".xml: object") == 3


def test_ids_may_be_text(tmp_path):
    photos(tmp_path / "mine/images")
    dump(tmp_path / "mine/a.json", coco(text=True))
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


def test_ids_may_be_decimal(tmp_path):
    """pandas writes a column of ids with a missing one as decimals."""
    photos(tmp_path / "mine/images")
    content = coco()
    for item in content["annotations"]:
        item.update(image_id=float(item["image_id"]), category_id=f"{item['category_id']}.0")
    dump(tmp_path / "mine/a.json", content)
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


@pytest.mark.parametrize(
    ("key", "message"), [("images", "images: id 7 is used 2 times"), ("categories", "categories: id 1 is used 2")]
)
def test_duplicate_ids_are_refused(tmp_path, key, message):
    photos(tmp_path / "mine/images")
    content = coco()
    content[key][1]["id"] = str(content[key][0]["id"])
    dump(tmp_path / "mine/a.json", content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "mine")


@pytest.mark.parametrize(("name", "message"), [(None, "null"), (True, "true")])
def test_a_category_without_a_name_is_refused(tmp_path, name, message):
    photos(tmp_path / "mine/images")
    content = coco()
    content["categories"][1]["name"] = name
    dump(tmp_path / "mine/a.json", content)
    with pytest.raises(DataError, match=rf"a.json: categories\[1\]: name: expected text, got {message}; write its name"):
        load(tmp_path / "mine")


def test_duplicate_photos_are_refused(tmp_path):
    photos(tmp_path / "mine/images")
    content = coco()
    content["images"].append(content["images"][3] | {"id": 99})
    dump(tmp_path / "mine/a.json", content)
    with pytest.raises(DataError, match=r"photo-03\.jpg: 1 photos like this one are listed twice in a\.json"):
        load(tmp_path / "mine")


def test_annotations_of_unlisted_images_are_refused(tmp_path):
    photos(tmp_path / "mine/images")
    content = coco()
    for item in content["annotations"]:
        item["image_id"] = f"photo {item['image_id']}"
    dump(tmp_path / "mine/a.json", content)
    with pytest.raises(DataError, match=r"a\.json: no annotation has the image_id of a listed image"):
        load(tmp_path / "mine")


def without_objects(folder: Path, layout: str, part: str) -> None:
    """Write two splits, one of them without objects."""
    for name, shots in (("train", SHOTS[1:6]), ("val", SHOTS[6:])):
        bare = [shot._replace(objects=()) for shot in shots] if name == part else shots
        if layout == "coco":
            photos(folder / name, shots)
            dump(folder / f"annotations/instances_{name}.json", coco(bare))
        else:
            photos(folder / "images" / name, shots)
        if layout == "voc":
            xmls(folder / "annotations" / name, bare)
        if layout == "yolo" and name != part:  # labels/val is missing
            texts(folder / "labels" / name, shots)
    if layout == "yolo":
        write(folder / "classes.txt", "\n".join(NAMES))


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_parts_without_objects_are_refused(tmp_path, layout, part, capsys):
    without_objects(tmp_path / "mine", layout, part)
    config = {
        "output_dir": str(tmp_path / "run"),
        "data": {"root": str(tmp_path), "classes": list(NAMES)}
        | {each: [{"path": "mine", "split": each}] for each in ("train", "val")},
        "model": {"pretrained": "none"},
    }
    write(tmp_path / "a.yaml", json.dumps(config))
    assert train.main(["--config", str(tmp_path / "a.yaml"), *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"data.{part}: no photo has an object" in line
    assert not (tmp_path / "run/checkpoints").exists()
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "b.yaml")]) == 2
    assert "no photo has an object" in capsys.readouterr().err


def test_evaluation_needs_objects_that_are_not_difficult(tmp_path, capsys):
    for part, shots in (("train", SHOTS[:6]), ("val", SHOTS[6:])):
        photos(tmp_path / "mine" / part, shots)
        xmls(tmp_path / "mine" / part, shots, extra="<difficult>1</difficult>")
    loaded = load(tmp_path / "mine", "val").photos
    loaded.require_objects("data.train", with_difficult=True)
    with pytest.raises(DataError, match=r"data\.val: all \d+ objects are marked difficult, of 4 photos"):
        loaded.require_objects("data.val", with_difficult=False)
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "b.yaml")]) == 2
    assert "objects are marked difficult" in capsys.readouterr().err


def test_the_format_with_more_photos_is_used_with_a_note(tmp_path):
    photos(tmp_path / "mine/images")
    xmls(tmp_path / "mine/annotations")
    texts(tmp_path / "mine/labels", SHOTS[:3])
    write(tmp_path / "mine/classes.txt", "\n".join(NAMES))
    loaded = load(tmp_path / "mine")
    assert assert_true(loaded.photos) == set(range(len(SHOTS)))
    assert "has boxes in more than one format (VOC for 10, YOLO for 3 photos); using VOC" in loaded.notes[0]
    assert "Photos with boxes only in the other count as photos without objects" in loaded.notes[0]
    forced = load(tmp_path / "mine", data_format="yolo").photos
    assert np.diff(forced.starts).tolist() == [len(shot.objects) for shot in SHOTS[:3]] + [0] * 7


@pytest.mark.parametrize(
    "name", ["no", "007", "1.10", "1e3", "US$5_$x^", "a, b", "猫", "ключ & <замок>", "null", "[x]", "it's"]
)
def test_class_names_keep_their_spelling(tmp_path, name, capsys):
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
        assert new_config.main([str(tmp_path / layout), "--output", str(tmp_path / f"{layout}.yaml")]) == 0
        data = load_config(tmp_path / f"{layout}.yaml").data
        assert sorted(data.class_names) == sorted(names)
        loaded = load(tmp_path / layout, classes=names).photos
        assert np.bincount(loaded.labels).tolist() == [
            sum(label == each for shot in SHOTS for label, *_ in shot.objects) for each in range(3)
        ]


def test_outlines_without_boxes_become_their_bounding_boxes(tmp_path):
    photos(tmp_path / "mine/images")
    content = coco()
    for item in content["annotations"]:
        x, y, width, height = item.pop("bbox")
        item["segmentation"] = [[x, y, x + width, y, x, y + 3], [x + 2, y + 2, x + 1, y + height]]
    dump(tmp_path / "mine/a.json", content)
    assert assert_true(load(tmp_path / "mine").photos) == set(range(len(SHOTS)))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [60, 60], "counts": "ab"}, r"annotation 1 of photo-01\.jpg: has a mask \(RLE\) but no bbox; export boxes"),
        ([[1, 2, 3]], "annotation 1 of .* has no bbox, and its segmentation is not a list of outlines"),
        ([[]], "annotation 1 of .* has no bbox, and its segmentation is not a list of outlines"),
        ([], "annotation 1 of .* bbox None is not left, top, width and height"),
    ],
)
def test_objects_without_a_box_are_refused(tmp_path, segmentation, message):
    photos(tmp_path / "mine/images")
    content = coco()
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = segmentation
    dump(tmp_path / "mine/a.json", content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "mine")


def packed(folder: Path) -> None:
    photos(folder / "images")
    write(folder / "annotations.zip", "PK")


def table(folder: Path) -> None:
    """Write a CSV table, as in TensorFlow's object detection tutorials."""
    photos(folder / "images")
    write(folder / "data/train_labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n")


def labelme(folder: Path) -> None:
    photos(folder)
    for shot in SHOTS:
        dump(folder / f"{shot.name}.json", {"shapes": [], "imagePath": f"{shot.name}.jpg"})


def heic(folder: Path) -> None:
    xmls(folder)
    write(folder / "photo-01.heic", "photo")


def empty(folder: Path) -> None:
    folder.mkdir()


def photos_alone(folder: Path) -> None:
    photos(folder / "VOC2012/JPEGImages")


def annotations_alone(folder: Path) -> None:
    xmls(folder / "Annotations")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (packed, r"Found: 10 photos, 1 \.zip; folders: images\. .*Unpack the \.zip first"),
        (table, r"Found: 10 photos, 1 \.csv; .*Export or convert .* CSV tables \(TensorFlow tutorials\)"),
        (labelme, r"Found: 10 photos, 10 \.json; .*Export or convert .* the JSON files of labelme"),
        (heic, r"Found: 10 \.xml, 1 \.heic; .*1 \.heic skipped as unsupported; convert HEIC to JPEG by"),
        (empty, r"Found: no files; .*no supported photos"),
        (photos_alone, r"no object was found in it, read as VOC\. Found: 10 photos; .*VOC needs an XML file per photo"),
        (annotations_alone, r"no object was found in it, read as VOC\. Found: 10 \.xml; .*no supported photos"),
    ],
)
def test_unusable_folders_are_refused_with_advice(tmp_path, make, message, capsys):
    make(tmp_path / "mine")
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_only_the_first_of_many_faults_are_reported(tmp_path, capsys):
    shots = [shot._replace(objects=((0, 5, 5, 9, 9),) * 9) for shot in SHOTS]
    photos(tmp_path / "mine/train", shots)
    xmls(tmp_path / "mine/train", shots)
    for path in (tmp_path / "mine/train").glob("*.xml"):
        path.write_text(path.read_text().replace("bndbox", "robndbox"))  # as roLabelImg writes rotated boxes
    photos(tmp_path / "mine/val")
    xmls(tmp_path / "mine/val")
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 51
    assert "object 1 (cat): has a rotated box (angle missing), but SSD needs upright ones" in lines[0]
    assert lines[-1] == "error: ... and 40 more faults"


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_boxes_relative_to_the_photo_are_refused(tmp_path, layout):
    """As pixels, all numbers are smaller than 1."""
    photos(tmp_path / "mine/images")
    if layout == "voc":
        xmls(tmp_path / "mine/annots", number=lambda value: value / 100)
    else:
        content = coco()
        for item in content["annotations"]:
            item["bbox"] = [value / 100 for value in item["bbox"]]
        dump(tmp_path / "mine/a.json", content)
    with pytest.raises(DataError, match=r"mine: all \d+ boxes lie within 0\.\.1, .*photo-0\d\..*, but pixels are expected"):
        load(tmp_path / "mine")


def no_category(folder: Path) -> None:
    content = coco()
    for item in content["annotations"]:
        item["category_id"] = 44
    dump(folder / "a.json", content)


def no_xml(folder: Path) -> None:
    for shot in SHOTS:
        write(folder / f"annots/{shot.name}.xml", xml(shot, f"{shot.name}.jpg").replace("</object>", "<object>"))


def no_name(folder: Path) -> None:
    texts(folder / "labels", first=7)
    write(folder / "data.yaml", "names: [cat]")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_category, r"a\.json: annotation \d+ of photo-0\d\.jpg: category_id 44 is in no category"),
        (no_xml, r"photo-0\d\.xml: is not valid XML"),
        (no_name, r"photo-0\d\.txt: line 1: class \d has no name; known: 0 cat"),
    ],
)
def test_if_no_file_is_readable_the_first_faults_are_reported(tmp_path, make, message, capsys):
    photos(tmp_path / "mine/images")
    make(tmp_path / "mine")
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 2
    errors = capsys.readouterr().err
    assert re.search(message, errors)
    assert "no object was found" not in errors


@pytest.mark.parametrize(("name", "message"), [("background", "'background' is added automatically"), ("", "expected text")])
def test_an_invalid_class_name_is_refused_before_timing(tmp_path, name, message, capsys, monkeypatch):
    monkeypatch.setattr(proposal, "try_out", lambda *_: pytest.fail("timed"))
    photos(tmp_path / "mine/images")
    content = coco()
    content["categories"][1]["name"] = name
    dump(tmp_path / "mine/a.json", content)
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    count = sum(label == 1 for shot in SHOTS for label, *_ in shot.objects)
    assert line.startswith(f"error: {tmp_path / 'mine'}: class {name!r}, of {count} object(s): {message}")
    assert line.endswith("; rename it in the annotations")


def test_a_class_found_only_in_test_photos_is_reported(tmp_path, capsys):
    for part, label in (("train", 0), ("val", 0), ("test", 1)):
        shots = [shot._replace(objects=((label, 5, 5, 29, 29),)) for shot in SHOTS]
        photos(tmp_path / "mine" / part, shots)
        xmls(tmp_path / "mine" / part, shots)
    assert new_config.main([str(tmp_path / "mine"), "--output", str(tmp_path / "a.yaml")]) == 0
    assert "note: no object of class dog is in data.train or data.val, but in another split alone" in capsys.readouterr().out
