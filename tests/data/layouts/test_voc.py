from pathlib import Path

import cv2
import numpy as np
import pytest

from data.dataset.annotation_loader import load_annotations
from data.dataset.errors import DataError
from data.dataset.images import read_image
from ssd.config.schema import VOC_CLASSES, SourceConfig
from tests.helpers.voc import item, make_folder, xml


def test_several_folders_splits_and_suffixes(tmp_path):
    make_folder(tmp_path / "one", {"b 1": xml(item()), "ä": xml()}, {"train": "\ufeffb 1\r\n\r\nä\n"})
    make_folder(tmp_path / "two", {"c": xml(item("dog"), item()), "d": xml()}, {"cat_train": "c  1\nd -1\nc  1\n"}, ".PNG")
    make_folder(tmp_path / "three", {"e": xml(), "f": xml(size=None)}, suffix=".webp")
    sources = [
        SourceConfig(path="one", split="train"), SourceConfig(path="two", split="cat_train"), SourceConfig(path="three")
    ]  # fmt: skip
    loaded = load_annotations(sources, tmp_path, ["cat", "dog"])
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


def test_a_folder_without_splits_is_divided_by_a_fraction(tmp_path):
    make_folder(tmp_path / "one", {f"p{i:03d}": xml() for i in range(60)})

    def ids(split: str, seed: int = 0) -> set[str]:
        source = SourceConfig(path="one", split=split, val_fraction=0.25)
        photos = load_annotations([source], tmp_path, ["cat"], seed).photos
        return {photos.path(i) for i in range(len(photos))}

    assert ids("train") | ids("val") == {str(path) for path in (tmp_path / "one/JPEGImages").iterdir()}
    assert not ids("train") & ids("val")
    assert 5 <= len(ids("val")) <= 25
    assert ids("val") == ids("val")
    assert ids("val") != ids("val", seed=1)


def test_all_faults_are_reported_at_once(tmp_path):
    make_folder(tmp_path / "one", {"a": xml(item("x"), item(box=None)), "b": xml()}, {"train": "a\nb\nc\n"})
    (tmp_path / "one/JPEGImages/b.jpg").unlink()
    sources = [SourceConfig(path="one", split="train"), SourceConfig(path="one", split="val"), SourceConfig(path="none")]
    with pytest.raises(DataError) as error:
        load_annotations(sources, tmp_path, ["cat", "dog"])
    text = str(error.value)
    assert len(text.splitlines()) == 7
    for expected in ("unknown class 'x'", "has no box", "no photo of that name", "c.xml: is missing"):
        assert expected in text
    assert "available: train" in text
    assert "no such folder" in text


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".bmp", ".webp"])
def test_every_image_format_becomes_rgb(tmp_path, suffix):
    picture = np.zeros((6, 9, 3), np.uint8)
    picture[..., 0] = 200  # blue in OpenCV's order
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), picture)
    image = read_image(path, (9, 6))
    assert image.shape == (6, 9, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image.reshape(-1, 3).mean(axis=0), [0, 0, 200], atol=12)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (4, np.uint8), (3, np.uint16), (1, np.uint16)])
def test_grey_alpha_and_16_bit(tmp_path, channels, dtype):
    white = np.full((5, 7, channels), np.iinfo(dtype).max // 2 + 1, dtype)
    cv2.imwrite(str(tmp_path / "a.png"), white)
    image = read_image(tmp_path / "a.png", (7, 5))
    assert image.shape == (5, 7, 3)
    np.testing.assert_allclose(image, 128, atol=1)


def test_the_annotation_decides_about_exif_rotation(tmp_path):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 20:] = 255
    encoded = cv2.imencode(".jpg", image)[1].tobytes()
    # An EXIF block with orientation 6: rotate by 90 degrees.
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"
    block = b"Exif\x00\x00" + tiff
    (tmp_path / "a.jpg").write_bytes(encoded[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + encoded[2:])
    stored, upright = read_image(tmp_path / "a.jpg", (40, 20)), read_image(tmp_path / "a.jpg", (20, 40))
    assert stored.shape == (20, 40, 3)
    assert upright.shape == (40, 20, 3)
    assert stored[10, 35].mean() > 200
    assert upright[35, 10].mean() > 200
    assert read_image(tmp_path / "a.jpg").shape == (40, 20, 3)  # an annotation without a size refers to the upright photo


def test_images_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((5, 7, 3), np.uint8))
    for name, size, expected in [
        ("none.jpg", (0, 0), "cannot be read"),
        ("empty.jpg", (0, 0), "is not an image: the file is empty"),
        ("text.jpg", (0, 0), "not a supported image"),
        ("small.png", (9, 9), "the annotation says 9 × 9 pixels, but the photo has 7 × 5"),
    ]:
        with pytest.raises(DataError, match=expected):
            read_image(tmp_path / name, size)


def test_the_real_data_sets(shared_data):
    loaded = load_annotations([SourceConfig(path="bccd", split="trainval")], shared_data, ["RBC", "WBC", "Platelets"])
    assert len(loaded.photos) == 292
    (note,) = loaded.notes
    folder = shared_data / "bccd/Annotations"
    assert note == (
        f"2 boxes without area were left out: {folder}/BloodImage_00338.xml: object 13 (RBC); "
        f"{folder}/BloodImage_00343.xml: object 4 (RBC)"
    )
    photos = load_annotations([SourceConfig(path="voc07s/VOC2007", split="val")], shared_data, VOC_CLASSES).photos
    assert len(photos) == 450
    assert set(photos.labels.tolist()) == set(range(20))
    width_height = np.tile(np.repeat(photos.sizes, np.diff(photos.starts), axis=0), 2)
    assert (photos.boxes >= 0).all()
    assert (photos.boxes <= width_height).all()
