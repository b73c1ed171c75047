"""The share of objects that shipped weights recognise before training."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from data.loading.dataset import DetectionDataset
from ssd.autoconfig.familiarity import share_recognised
from ssd.weights.formats import load_any
from ssd.weights.pretrained import network_of
from ssd.weights.sources import checkpoint_file
from tests.helpers.annotations import load
from tests.helpers.paths import ROOT
from tests.helpers.voc import item, xml

# Objects in the photos that the project ships, corners in pixels.
BOXES = {"astronaut": (1, 1, 470, 512), "cat": (30, 20, 440, 300), "photographer": (90, 40, 330, 500)}


@pytest.fixture
def photos(tmp_path):
    """Three photographs, and as many images of noise with the same boxes; a photo without objects."""

    def of(kind: str):
        folder = tmp_path / kind
        for part in ("JPEGImages", "Annotations"):
            (folder / part).mkdir(parents=True)
        for name, box in BOXES.items():
            source, target = ROOT / f"tests/photos/{name}.jpg", folder / f"JPEGImages/{name}.jpg"
            height, width = cv2.imread(str(source)).shape[:2]
            clipped = tuple(min(value, size) for value, size in zip(box, (width, height) * 2, strict=True))
            (folder / f"Annotations/{name}.xml").write_text(xml(item("mug", clipped), size=(width, height)))
            if kind == "photos":
                shutil.copy(source, target)
            else:
                cv2.imwrite(str(target), np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
        shutil.copy(folder / "JPEGImages/cat.jpg", folder / "JPEGImages/empty.jpg")
        (folder / "Annotations/empty.xml").write_text(xml(size=None))
        return load(folder, classes=["mug"]).photos

    return of


def test_photographs_are_familiar_and_noise_is_not(photos):
    assert share_recognised(photos("photos"), "slim") == 1
    assert share_recognised(photos("noise"), "slim") == 0


def test_the_share_equals_loops_over_objects_and_dboxes(shapes):
    state, _ = load_any(checkpoint_file("slim"))
    network = network_of(state)
    mean, scale = (torch.tensor(state.preprocessing[name]) for name in ("mean", "scale"))
    dboxes = network.dbox_list.numpy().astype(float)
    samples = DetectionDataset(shapes, 300, (0, 0, 0))
    counted = []
    for i in range(len(shapes)):
        image = samples[(0, i)].images[0]
        with torch.no_grad():
            _, conf, _ = network(((image.float() - mean) * scale).permute(2, 0, 1)[None])
        scores = 1 - conf[0].double().softmax(-1)[:, 0].numpy()
        for box in shapes.boxes[shapes.starts[i] : shapes.starts[i + 1]] / np.tile(shapes.sizes[i], 2):
            overlaps = [overlap(box, dbox) for dbox in dboxes]
            counted.append(max(s for s, o in zip(scores, overlaps, strict=True) if o >= 0.5 or o == max(overlaps)))
    unclear = sum(abs(score - 0.5) < 0.01 for score in counted)  # rounding decides
    assert unclear < 3
    assert share_recognised(shapes, "slim") * len(counted) == pytest.approx(
        sum(score > 0.5 for score in counted), abs=unclear + 1e-6
    )


def overlap(box: np.ndarray, dbox: np.ndarray) -> float:
    cx, cy, w, h = dbox
    width = min(box[2], cx + w / 2) - max(box[0], cx - w / 2)
    height = min(box[3], cy + h / 2) - max(box[1], cy - h / 2)
    both = max(width, 0) * max(height, 0)
    return both / ((box[2] - box[0]) * (box[3] - box[1]) + w * h - both)
