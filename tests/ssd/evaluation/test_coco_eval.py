import numpy as np
import pytest

from ssd.evaluation.coco_eval import coco_eval
from ssd.evaluation.metrics import METRICS
from tests.helpers.detections import found, truth


def test_by_hand():
    # A box of 100 × 100 pixels found 20 too narrow: overlap 0.8, which passes 0.5 to 0.8, 7 of the ten overlaps. Another
    # object is found exactly, with a lower score: its share of recall is precise at the seven, and half as precise above.
    objects = [truth((1, 1, 100, 100, 0, False), (201, 1, 300, 100, 0, False))]
    detections = [found((1, 1, 80, 100, 0, 0.9), (201, 1, 300, 100, 0, 0.8))]
    result = coco_eval(detections, objects, 1)
    # Above 0.8 one of two objects is found, second in rank: precision 1/2 at the 51 recalls up to 0.5, 0 beyond.
    assert result.ap[0] == pytest.approx((7 * 1 + 3 * (51 / 101) * 0.5) / 10)
    assert METRICS["coco"].title == "mAP@0.5:0.95 (COCO)"


def test_classes_without_objects_and_without_detections():
    objects = [truth((1, 1, 50, 50, 0, False)), truth()]
    result = coco_eval([found()] * 2, objects, 2)
    assert result.ap[0] == 0
    assert np.isnan(result.ap[1])
    assert result.mean_ap == 0


def test_at_most_100_detections_of_each_class_count():
    objects = [truth(*((1, 1, 50, 50, label, False) for label in range(2)))]
    far = [(101, 1, 150, 50)] * 99 + [(1, 1, 50, 50)]
    scores = np.linspace(0.9, 0.1, 100)
    both = found(*((*box, label, score) for label in range(2) for box, score in zip(far, scores, strict=True)))
    assert coco_eval([both], objects, 2).ap == pytest.approx([0.01, 0.01])


def test_difficult_objects_neither_count_nor_hurt():
    objects = [truth((1, 1, 50, 50, 0, False), (101, 1, 150, 50, 0, True))]
    hit = (1, 1, 50, 50)
    assert coco_eval([found((*hit, 0, 0.9))], objects, 1).mean_ap == pytest.approx(1)
    assert coco_eval([found((101, 1, 150, 50, 0, 0.95), (*hit, 0, 0.9))], objects, 1).mean_ap == pytest.approx(1)
