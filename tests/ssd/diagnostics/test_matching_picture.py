import io

import numpy as np

from data.loading.dataset import DetectionDataset
from data.shapes import CLASSES
from ssd.diagnostics.matching_picture import PhotoMatches, figure
from tests.helpers.annotations import load


def test_photo_names_are_not_parsed_as_formulas(shapes_root):
    photos = load(shapes_root / "shapes", "val", CLASSES).photos
    batch = DetectionDataset(photos, 300, (0, 0, 0)).__getitems__([(0, 0)])
    boxes = np.array([[0.1, 0.1, 0.5, 0.5]])
    matches = PhotoMatches(boxes, boxes, np.array([0]), np.array([0]), np.array([False]), np.array([1.0]))
    content = io.BytesIO()
    figure(batch, ["US$5_$x^.jpg"], [matches]).savefig(content, format="svg")
    assert b"US$5_$x^.jpg" in content.getvalue()
