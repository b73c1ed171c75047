"""Photos: orientation, formats, and files that cannot be read."""

import json
import os
import shutil
import struct
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from data.dataset.errors import DataError
from data.dataset.images import check_photo, read_image
from data.loading.dataset import DetectionDataset
from data.shapes import CLASSES, write_shapes
from tests.helpers.annotations import load
from tests.helpers.voc import item, xml

# How to store an upright picture for each EXIF orientation.
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a[::-1]), 8: lambda a: np.rot90(a, -1),
}  # fmt: skip
BOX = (32, 16, 64, 48)  # edges of the object, the only bright one


def voc(folder, width: int, height: int, with_size: bool = True) -> None:
    (folder / "Annotations").mkdir()
    x1, y1, x2, y2 = BOX
    text = xml(item(box=(x1 + 1, y1 + 1, x2, y2)), size=(width, height) if with_size else None)
    (folder / "Annotations/a.xml").write_text(text)


def bare_voc(folder, width: int, height: int) -> None:
    voc(folder, width, height, with_size=False)


def coco(folder, width: int, height: int) -> None:
    x1, y1, x2, y2 = BOX
    (folder / "JPEGImages").rename(folder / "images")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "coco.json").write_text(json.dumps(content))


def yolo(folder, width: int, height: int) -> None:
    (folder / "JPEGImages").rename(folder / "images")
    (folder / "labels").mkdir()
    x1, y1, x2, y2 = BOX
    (folder / "labels/a.txt").write_text(
        f"0 {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}"
    )
    (folder / "classes.txt").write_text("cat\n")


def loaded(folder, pixels: np.ndarray, orientation: int, write, suffix: str = ".jpg") -> tuple[np.ndarray, list[float]]:
    """Return a photo as training loads it, and its box."""
    (folder / "JPEGImages").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(folder / f"JPEGImages/a{suffix}", exif=exif, quality=95)
    write(folder)
    photos = load(folder).photos
    return DetectionDataset(photos, 300, (0, 0, 0)).image(0), photos.boxes[0].tolist()


def covers(image: np.ndarray, box: list[float]) -> bool:
    x1, y1, x2, y2 = np.rint(box).astype(int)
    inside = image[y1:y2, x1:x2]
    return inside.mean() > 180 and (image > 128).all(axis=2).sum() == pytest.approx(inside[..., 0].size, rel=0.1)


@pytest.mark.parametrize("width, height", [(80, 80), (96, 80)])
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("write", [voc, bare_voc, coco, yolo])
def test_boxes_drawn_on_upright_photos_fit(tmp_path, orientation, width, height, write):
    upright = np.full((height, width, 3), 40, np.uint8)
    upright[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 220
    stored = np.ascontiguousarray(STORED[orientation](upright))
    image, box = loaded(tmp_path / "mine", stored, orientation, lambda folder: write(folder, width, height))
    assert image.shape == upright.shape
    assert box == pytest.approx(BOX)
    assert covers(image, box)


@pytest.mark.parametrize(("write", "suffix"), [(voc, ".jpg"), (coco, ".jpg"), (voc, ".tif"), (voc, ".png"), (voc, ".webp")])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_on_stored_pixels_fit_if_the_annotation_gives_the_stored_size(tmp_path, orientation, write, suffix):
    stored = np.full((80, 96, 3), 40, np.uint8)
    stored[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 220
    image, box = loaded(tmp_path / "mine", stored, orientation, lambda folder: write(folder, 96, 80), suffix)
    assert image.shape == stored.shape
    assert covers(image, box)


@pytest.mark.parametrize("write", [voc, coco])
@pytest.mark.parametrize("orientation", [6, 8])
def test_a_size_that_matches_neither_orientation_is_refused(tmp_path, orientation, write):
    message = r"says 96 × 90 pixels, but the photo has 96 × 80 \(80 × 96 after its EXIF orientation\); use the photo"
    with pytest.raises(DataError, match=message):
        loaded(tmp_path / "mine", np.zeros((80, 96, 3), np.uint8), orientation, lambda folder: write(folder, 96, 90))


def test_a_broken_exif_block_raises_no_warning(tmp_path, recwarn):
    block = b"Exif\0\0" + struct.pack("<2sHL", b"II", 42, 2**31)
    Image.new("RGB", (50, 40)).save(tmp_path / "a.jpg", exif=block)
    assert check_photo(tmp_path / "a.jpg").size == (50, 40, 50, 40)
    assert not recwarn.list


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_photos_with_non_utf_8_names_can_be_used(tmp_path):
    write_shapes(tmp_path / "mine", 4, 2)
    for path in [*tmp_path.glob("mine/JPEGImages/*"), *tmp_path.glob("mine/Annotations/*")]:
        path.rename(path.with_name(os.fsdecode(b"caf\xe9") + path.name))
    shutil.rmtree(tmp_path / "mine/ImageSets")
    total = 0
    for split in ("train", "val"):
        photos = load(tmp_path / "mine", split, CLASSES, val_fraction=0.4).photos
        total += len(photos)
        assert DetectionDataset(photos, 300, (0, 0, 0)).image(0).any()
    assert total == 6


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".bmp", ".webp"])
def test_every_image_format_becomes_rgb(tmp_path, suffix):
    picture = np.zeros((6, 9, 3), np.uint8)
    picture[..., 0] = 200  # blue in OpenCV's order
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), picture)
    image = read_image(path, (9, 6)).pixels
    assert image.shape == (6, 9, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image.reshape(-1, 3).mean(axis=0), [0, 0, 200], atol=12)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (4, np.uint8), (3, np.uint16), (1, np.uint16)])
def test_grey_alpha_and_16_bit(tmp_path, channels, dtype):
    white = np.full((5, 7, channels), np.iinfo(dtype).max // 2 + 1, dtype)
    cv2.imwrite(str(tmp_path / "a.png"), white)
    image = read_image(tmp_path / "a.png", (7, 5)).pixels
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
    stored, upright = (read_image(tmp_path / "a.jpg", size).pixels for size in ((40, 20), (20, 40)))
    assert stored.shape == (20, 40, 3)
    assert upright.shape == (40, 20, 3)
    assert stored[10, 35].mean() > 200
    assert upright[35, 10].mean() > 200
    unsized = read_image(tmp_path / "a.jpg").pixels  # an annotation without a size refers to the upright photo
    assert unsized.shape == (40, 20, 3)


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
