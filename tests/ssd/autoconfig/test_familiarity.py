"""The share of objects that shipped weights recognise before training."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from data.loading.dataset import DetectionDataset
from ssd.autoconfig import familiarity
from ssd.autoconfig.familiarity import share_recognised
from ssd.weights.checkpoint import CheckpointError
from ssd.weights.formats import load_any
from ssd.weights.pretrained import network_of
from ssd.weights.sources import SHIPPED, checkpoint_file
from tests.helpers.annotations import load, square_objects
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


def test_photographs_are_familiar_and_noise_is_not(photos, monkeypatch):
    both = photos("photos"), photos("noise")
    assert [share_recognised(each, "slim") for each in both] == [None, None]  # three objects say little
    monkeypatch.setattr(familiarity, "MIN_OBJECTS", 3)
    assert [share_recognised(each, "slim") for each in both] == [1, 0]


def test_objects_below_the_smallest_dbox_do_not_count():
    assert share_recognised(square_objects(29), "slim") is None


def test_damaged_weights(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(SHIPPED, "slim", tmp_path / "slim.pt")
    (tmp_path / "slim.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"slim\.pt.*; restore this file, or use --scratch"):
        share_recognised(shapes, "slim")


def test_the_share_equals_loops_over_objects_and_dboxes(shapes):
    state, _ = load_any(checkpoint_file("slim"))
    network = network_of(state)
    mean, scale = (torch.tensor(state.preprocessing[name]) for name in ("mean", "scale"))
    dboxes = network.dbox_list.numpy().astype(float)
    samples = DetectionDataset(shapes, 300, (0, 0, 0))
    shares, unclear, skipped = [], [], 0
    for i in range(len(shapes)):
        with torch.no_grad():
            _, conf, _ = network(((samples[(0, i)].images[0].float() - mean) * scale).permute(2, 0, 1)[None])
        scores = 1 - conf[0].double().softmax(-1)[:, 0].numpy()
        best = []
        for x1, y1, x2, y2 in shapes.boxes[shapes.starts[i] : shapes.starts[i + 1]] / np.tile(shapes.sizes[i], 2):
            if 300 * (x2 - x1) * 300 * (y2 - y1) < 30 * 30:
                skipped += 1
                continue
            overlaps = [overlap((x1, y1, x2, y2), dbox) for dbox in dboxes]
            best.append(max(s for s, o in zip(scores, overlaps, strict=True) if o >= 0.5 or o == max(overlaps)))
        if best:
            shares.append(np.mean([score > 0.5 for score in best]))
            unclear += [1 / len(best) for score in best if abs(score - 0.5) < 0.01]  # rounding decides
    assert skipped > 0
    assert len(unclear) < 3
    assert share_recognised(shapes, "slim") == pytest.approx(np.mean(shares), abs=sum(unclear) / len(shares) + 1e-6)


def overlap(box: tuple[float, ...], dbox: tuple[float, ...]) -> float:
    cx, cy, w, h = dbox
    width = min(box[2], cx + w / 2) - max(box[0], cx - w / 2)
    height = min(box[3], cy + h / 2) - max(box[1], cy - h / 2)
    both = max(width, 0) * max(height, 0)
    return both / ((box[2] - box[0]) * (box[3] - box[1]) + w * h - both)
