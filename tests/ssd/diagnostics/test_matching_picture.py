import io

import numpy as np

from data.dataset.annotation_loader import load_annotations
from data.loading.dataset import DetectionDataset
from data.shapes import CLASSES
from ssd.config.schema import SourceConfig
from ssd.diagnostics.matching_picture import PhotoMatches, figure


def test_photo_names_are_not_parsed_as_formulas(shapes_root):
    photos = load_annotations([SourceConfig(path="shapes", split="val")], shapes_root, CLASSES).photos
    batch = DetectionDataset(photos, 300, (0, 0, 0)).__getitems__([(0, 0)])
    boxes = np.array([[0.1, 0.1, 0.5, 0.5]])
    matches = PhotoMatches(boxes, boxes, np.array([0]), np.array([0]), np.array([False]), np.array([1.0]))
    content = io.BytesIO()
    figure(batch, ["US$5_$x^.jpg"], [matches]).savefig(content, format="svg")
    assert b"US$5_$x^.jpg" in content.getvalue()
