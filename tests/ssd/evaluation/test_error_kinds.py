import math

import numpy as np
import pytest

from ssd.evaluation.error_kinds import CLASSIFICATION, DUPLICATE, HIT, KINDS, error_kinds
from ssd.evaluation.overlap import pixel_iou
from ssd.evaluation.report import pair
from ssd.evaluation.voc_eval import area_ap, eleven_point_ap, voc_eval
from tests.helpers import reference
from tests.helpers.detections import found, random_set, truth

# 40 × 40 pixels, and what overlaps it by 0.82, 0.33 and 0.05.
BOX, NEAR, HALF, TOUCHING, FAR = (11, 11, 50, 50), (15, 11, 54, 50), (31, 11, 70, 50), (47, 11, 86, 50), (101, 101, 140, 140)


@pytest.mark.parametrize(
    ("kind", "detections"),
    [
        ("localisation", [(*HALF, 0, 0.9)]),
        ("classification", [(*NEAR, 1, 0.9)]),
        ("duplicate", [(*BOX, 0, 0.9), (*NEAR, 0, 0.8)]),
        ("background", [(*TOUCHING, 0, 0.9)]),
        ("both", [(*HALF, 1, 0.9)]),
        ("missed", []),
    ],
)
def test_each_kind_once(kind, detections):
    # A second object of each class is found.
    objects = [truth((*BOX, 0, False), (*FAR, 0, False)), truth((*FAR, 1, False))]
    errors = error_kinds([found(*detections, (*FAR, 0, 0.7)), found((*FAR, 1, 0.7))], objects, 2, area_ap)
    others = {"missed": 1} if kind in ("background", "both", "missed") else {}  # the first object, of which nothing is known
    assert errors.counts(0.5) == {**dict.fromkeys(KINDS, 0), **others, kind: 1}
    assert errors.counts(0.95)["missed"] == 3
    before = voc_eval([found(*detections, (*FAR, 0, 0.7)), found((*FAR, 1, 0.7))], objects, 2, use_07_metric=False).mean_ap
    first_missed = {"background": (0.5 + 1) / 2, "both": (0.5 + 1) / 2}
    assert before + errors.map_impact[kind] == pytest.approx(first_missed.get(kind, 1))
    assert before < 1 - 1e-6


def test_an_overlap_of_exactly_half_counts_everywhere():
    half, objects = (11, 11, 50, 30), [truth((*BOX, 0, False))]

    def kinds(*detections: tuple) -> list[int]:
        return error_kinds([found(*detections)], objects, 2).kind.tolist()

    assert kinds((*half, 0, 0.9)) == [HIT]
    assert kinds((*half, 1, 0.9)) == [CLASSIFICATION]
    assert kinds((*BOX, 0, 0.9), (*half, 0, 0.8)) == [HIT, DUPLICATE]
    assert pair(pixel_iou(np.array([half], float)[:, None], objects[0]["boxes"])).tolist() == [0]


def test_one_of_several_detections_is_corrected():
    objects = [truth((*BOX, 0, False), (*FAR, 0, False))]
    detections = [found((*HALF, 0, 0.9), (*HALF, 0, 0.8), (*FAR, 0, 0.7))]
    errors = error_kinds(detections, objects, 1, area_ap)
    assert errors.counts(0)["localisation"] == 2
    assert errors.map_impact["localisation"] == pytest.approx(1 - 0.5 / 3)  # two hits in place of one, the third of three
    # At an object that is claimed it is taken away.
    errors = error_kinds([found((*BOX, 0, 0.9), (*HALF, 0, 0.8), (*FAR, 0, 0.7))], objects, 1, area_ap)
    assert errors.map_impact["localisation"] == pytest.approx(1 - (0.5 + 0.5 * 2 / 3))


def test_difficult_objects_are_neither_missed_nor_hurt():
    objects = [truth((*BOX, 0, True), (*FAR, 1, False))]
    errors = error_kinds([found((*BOX, 0, 0.9), (*NEAR, 0, 0.8), (*FAR, 1, 0.7))], objects, 2)
    assert not any(errors.counts(0).values())
    assert all(cost == 0 for cost in errors.map_impact.values())
    # Of another class it is false by VOC's rule; without it nothing is, and nothing is found that counts.
    errors = error_kinds([found((*BOX, 1, 0.9), (*FAR, 1, 0.7))], objects, 2, area_ap)
    assert errors.counts(0) == {**dict.fromkeys(KINDS, 0), "classification": 1}
    assert errors.map_impact["classification"] == pytest.approx(0.5)


def test_a_class_that_misses_all_its_objects():
    errors = error_kinds([found((*FAR, 1, 0.9))], [truth((*BOX, 0, False), (*FAR, 1, False))], 3)
    assert errors.map_impact["missed"] == pytest.approx(0.5)


def test_empty_data_set():
    assert error_kinds([found()], [truth((*BOX, 0, False))], 1).map_impact["missed"] == 1
    assert all(math.isnan(cost) for cost in error_kinds([found((*BOX, 0, 0.9))], [truth()], 1).map_impact.values())
    assert error_kinds([found((math.nan,) * 4 + (0, 0.9))], [truth((*BOX, 0, False))], 1).counts(0)["background"] == 1


@pytest.mark.parametrize("use_07_metric", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_plain_loop(seed, use_07_metric):
    detections, truths = random_set(seed, images=25)
    rng = np.random.default_rng(seed)
    for entry in detections:  # some far from all objects, some further off theirs
        entry["boxes"][::4] += rng.uniform(-60, 60, entry["boxes"][::4].shape)
        entry["boxes"][:, 2:] = np.maximum(entry["boxes"][:, 2:], entry["boxes"][:, :2] + 4)
    errors = error_kinds(detections, truths, 4, eleven_point_ap if use_07_metric else area_ap)
    kinds, map_impact = reference.error_kinds(detections, truths, 4, use_07_metric)
    counts = {kind: kinds.count(kind) for kind in KINDS}
    assert errors.counts(0) == counts
    assert min(counts.values()) > 0
    assert errors.map_impact == pytest.approx(map_impact)
    assert all(cost >= 0 for cost in errors.map_impact.values())
