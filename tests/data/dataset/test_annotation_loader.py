"""Loading: notes, damaged photos, a fraction, progress."""

from pathlib import Path

import numpy as np
import pytest

from data.dataset import parallel_reader
from data.dataset.errors import DataError
from ssd.config.schema import VOC_CLASSES, SourceConfig
from tests.helpers.annotations import load, load_sources
from tests.helpers.exports import SHOTS, photos, xmls
from tests.helpers.formats import assert_same_objects, load_shapes
from tests.helpers.photos import DAMAGED
from tests.helpers.voc import item, make_folder, xml


def test_only_the_first_of_many_fixed_boxes_are_named(tmp_path):
    shots = [shot._replace(objects=((0, 5, 5, 6, 9), (0, 5, 5, 6, 9), (1, 5, 5, 29, 29))) for shot in SHOTS]
    photos(tmp_path / "mine/images")
    xmls(tmp_path / "mine/annots", shots)
    (note,) = load(tmp_path / "mine").notes
    assert note.startswith("20 boxes without area were left out: ")
    assert note.endswith("; and 17 more")
    assert note.count(".xml: object") == 3


def test_a_fraction_is_reproducible(shapes_root, shapes):
    half = load_shapes(shapes_root / "shapes", "train", fraction=0.5).photos
    again = load_shapes(shapes_root / "shapes", "train", fraction=0.5).photos
    assert half.paths.tolist() == again.paths.tolist()
    assert 4 < len(half) < 20
    assert set(half.paths.tolist()) < set(shapes.paths.tolist())
    with pytest.raises(DataError, match="leaves no photo"):
        load_shapes(shapes_root / "shapes", "train", fraction=1e-9)
    whole = load_shapes(shapes_root / "shapes", "train", fraction=0.5, part="val").photos
    assert_same_objects(whole, shapes)  # validation uses all photos


def test_progress_covers_all_folders(shapes_root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # empty
    reported: list[tuple[int, int]] = []
    sources = [SourceConfig.model_validate({"path": "shapes", "split": split}) for split in ("val", "train")]
    classes = ("circle", "square", "triangle", "star", "cross")
    photos = load_sources(sources, shapes_root, classes, progress=lambda *counts: reported.append(counts)).photos
    assert len(photos) == 8 + 24
    assert reported == sorted(reported)
    assert {(8, 8), (32, 32)} <= set(reported)
    assert all(count <= total for count, total in reported)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """40 photos, one truncated, and one with a truncated annotation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_folder(tmp_path / "one", {f"{i:02d}": xml(item()) for i in range(40)})
    photo = tmp_path / "one/JPEGImages/03.jpg"
    photo.write_bytes(photo.read_bytes()[:150])
    (tmp_path / "one/Annotations/07.xml").write_text("<annotation><object>")
    return tmp_path / "one"


def test_refuse_reports_each_photo_in_one_line(folder):
    with pytest.raises(DataError) as caught:
        load(folder)
    lines = str(caught.value).splitlines()
    assert ["03.jpg" in lines[0], "07.xml: is not valid XML" in lines[1], len(lines)] == [True, True, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_leaves_them_out_and_lists_them(folder, workers, monkeypatch):
    monkeypatch.setattr(parallel_reader, "MIN_PARALLEL", 10)
    for _ in range(2):  # the second time from the cache
        loaded = load(folder, damaged="skip", workers=workers)
        names = [loaded.photos.path(i)[-6:-4] for i in range(len(loaded.photos))]
        assert names == [f"{i:02d}" for i in range(40) if i not in (3, 7)]
        assert len(loaded.photos.labels) == 38
        assert loaded.num_damaged == 2
        assert ["03.jpg: " in loaded.damaged[0], "07.xml: is not valid" in loaded.damaged[1]] == [True, True]
        assert loaded.notes == ("2 of 40 photos cannot be read and were left out (data.damaged: skip)",)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photo_damaged_inside_is_reported_again_from_the_cache(folder, workers, monkeypatch, capfd):
    monkeypatch.setattr(parallel_reader, "MIN_PARALLEL", 10)
    (folder / "JPEGImages/03.jpg").write_bytes(DAMAGED)
    for _ in range(2):
        with pytest.raises(DataError, match=r"03.jpg: is damaged or truncated \(.*\); replace it, or remove it from the split"):
            load(folder, workers=workers)
        assert load(folder, damaged="skip", workers=workers).num_damaged == 2
    assert capfd.readouterr() == ("", "")


def test_skip_refuses_too_many_damaged_photos(folder):
    (folder / "JPEGImages/11.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load(folder, damaged="skip")
    first, *rest = str(caught.value).splitlines()
    assert first == "3 of 40 photos cannot be read; data.damaged: skip leaves out at most 5%"
    assert len(rest) == 3


def test_skip_covers_missing_photos_but_not_wrong_boxes(folder):
    (folder / "JPEGImages/03.jpg").unlink()
    assert "03: no photo of that name" in load(folder, damaged="skip").damaged[0]
    (folder / "Annotations/09.xml").write_text(xml(item(name="horse")))
    with pytest.raises(DataError, match="unknown class 'horse'"):
        load(folder, damaged="skip")


def test_a_damaged_photo_is_checked_again_only_after_a_change(folder, monkeypatch):
    names = []
    inspect = parallel_reader.check_photo
    monkeypatch.setattr(parallel_reader, "check_photo", lambda path: names.append(path.name) or inspect(path))
    load(folder, damaged="skip")
    assert len(names) == 40
    (folder / "new").mkdir()  # so that annotations are read again
    assert load(folder, damaged="skip").num_damaged == 2
    assert len(names) == 40
    (folder / "JPEGImages/03.jpg").write_bytes((folder / "JPEGImages/04.jpg").read_bytes())
    assert load(folder, damaged="skip").num_damaged == 1
    assert names[40:] == ["03.jpg"]


def test_temporary_errors_are_not_cached(folder, monkeypatch):
    from data.dataset.errors import UnreachableError

    def unreachable(path):
        raise UnreachableError(f"{path}: cannot be read: Input/output error")

    inspect = parallel_reader.check_photo
    monkeypatch.setattr(parallel_reader, "check_photo", lambda path: (unreachable if path.stem == "20" else inspect)(path))
    (folder / "JPEGImages/03.jpg").write_bytes((folder / "JPEGImages/04.jpg").read_bytes())
    assert "20.jpg: cannot be read: Input/output error" in load(folder, damaged="skip").damaged[1]
    monkeypatch.setattr(parallel_reader, "check_photo", inspect)
    assert load(folder, damaged="skip").num_damaged == 1


def test_several_folders_splits_and_suffixes(tmp_path):
    make_folder(tmp_path / "one", {"b 1": xml(item()), "ä": xml()}, {"train": "\ufeffb 1\r\n\r\nä\n"})
    make_folder(tmp_path / "two", {"c": xml(item("dog"), item()), "d": xml()}, {"cat_train": "c  1\nd -1\nc  1\n"}, ".PNG")
    make_folder(tmp_path / "three", {"e": xml(), "f": xml(size=None)}, suffix=".webp")
    sources = [
        SourceConfig(path="one", split="train"), SourceConfig(path="two", split="cat_train"), SourceConfig(path="three")
    ]  # fmt: skip
    loaded = load_sources(sources, tmp_path, ["cat", "dog"])
    photos = loaded.photos
    assert [Path(photos.path(i)).name for i in range(6)] == ["b 1.jpg", "ä.jpg", "c.PNG", "d.PNG", "e.webp", "f.webp"]
    assert np.diff(photos.starts).tolist() == [1, 0, 2, 0, 0, 0]
    assert photos.sizes.tolist() == [[100, 80]] * 6
    assert photos.labels.tolist() == [0, 1, 0]
    assert photos.ground_truth(0)["boxes"].tolist() == [[11, 21, 30, 40]]
    assert ["1 duplicate ids" in note for note in loaded.notes] == [True]
    part = photos.select([2, 0])
    assert part.path(0) == photos.path(2)
    assert part.ground_truth(0)["labels"].tolist() == [1, 0]
    assert part.ground_truth(1)["labels"].tolist() == [0]


def test_all_faults_are_reported_at_once(tmp_path):
    make_folder(tmp_path / "one", {"a": xml(item("x"), item(box=None)), "b": xml()}, {"train": "a\nb\nc\n"})
    (tmp_path / "one/JPEGImages/b.jpg").unlink()
    sources = [SourceConfig(path="one", split="train"), SourceConfig(path="one", split="val"), SourceConfig(path="none")]
    with pytest.raises(DataError) as error:
        load_sources(sources, tmp_path, ["cat", "dog"])
    text = str(error.value)
    assert len(text.splitlines()) == 7
    for expected in ("unknown class 'x'", "has no box", "no photo of that name", "c.xml: is missing"):
        assert expected in text
    assert "available: train" in text
    assert "no such folder" in text


def test_the_real_data_sets(shared_data):
    loaded = load(shared_data / "bccd", "trainval", ["RBC", "WBC", "Platelets"])
    assert len(loaded.photos) == 292
    (note,) = loaded.notes
    folder = shared_data / "bccd/Annotations"
    assert note == (
        f"2 boxes without area were left out: {folder}/BloodImage_00338.xml: object 13 (RBC); "
        f"{folder}/BloodImage_00343.xml: object 4 (RBC)"
    )
    photos = load(shared_data / "voc07s/VOC2007", "val", VOC_CLASSES).photos
    assert len(photos) == 450
    assert set(photos.labels.tolist()) == set(range(20))
    width_height = np.tile(np.repeat(photos.sizes, np.diff(photos.starts), axis=0), 2)
    assert (photos.boxes >= 0).all()
    assert (photos.boxes <= width_height).all()
