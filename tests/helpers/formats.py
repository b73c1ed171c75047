"""One data set in several formats."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np

from data.dataset.annotations import Annotations
from data.shapes import CLASSES
from tests.helpers.annotations import load

load_shapes = partial(load, classes=CLASSES)


def as_coco(photos: Annotations) -> dict:
    images, annotations = [], []
    for i in range(len(photos)):
        width, height = photos.sizes[i].tolist()
        images.append({"id": 100 + i, "file_name": Path(photos.path(i)).name, "width": width, "height": height})
        for j in range(photos.starts[i], photos.starts[i + 1]):
            x1, y1, x2, y2 = photos.boxes[j].tolist()
            box, category = [x1, y1, x2 - x1, y2 - y1], 7 * int(photos.labels[j]) + 3
            annotations.append({"id": j, "image_id": 100 + i, "category_id": category, "bbox": box})
    categories = [{"id": 7 * label + 3, "name": name} for label, name in enumerate(photos.classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def copy_photos(photos: Annotations, folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(len(photos)):
        shutil.copy(photos.path(i), folder)


def write_yolo(photos: Annotations, images: Path, labels: Path) -> None:
    copy_photos(photos, images)
    labels.mkdir(parents=True)
    for i in range(len(photos)):
        rows = photos.objects(i)
        boxes = photos.boxes[rows] / np.tile(photos.sizes[i], 2)
        lines = [
            f"{label} {(x1 + x2) / 2:.8f} {(y1 + y2) / 2:.8f} {x2 - x1:.8f} {y2 - y1:.8f}\n"
            for label, (x1, y1, x2, y2) in zip(photos.labels[rows], boxes, strict=True)
        ]
        (labels / Path(photos.path(i)).with_suffix(".txt").name).write_text("".join(lines))


def assert_same_objects(photos: Annotations, expected: Annotations) -> None:
    names, wanted = ([Path(each.path(i)).name for i in range(len(each))] for each in (photos, expected))
    assert names == wanted
    np.testing.assert_array_equal(photos.sizes, expected.sizes)
    np.testing.assert_array_equal(photos.starts, expected.starts)
    np.testing.assert_array_equal(photos.labels, expected.labels)
    np.testing.assert_allclose(photos.boxes, expected.boxes, atol=1e-2)
