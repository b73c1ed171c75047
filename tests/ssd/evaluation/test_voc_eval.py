import math

import numpy as np
import pytest
import torch

from ssd.evaluation.voc_eval import voc_eval
from tests.helpers import reference
from tests.helpers.detections import found, random_set, truth

BOX, NEAR, FAR = (10, 10, 50, 50), (12, 10, 52, 50), (100, 100, 140, 140)


@pytest.mark.parametrize("use_07_metric", [True, False])
def test_by_hand(use_07_metric):
    # Two objects; a hit, then a miss, then the second hit: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    truths = [truth((*BOX, 0, False)), truth((*FAR, 0, False))]
    detections = [found((*NEAR, 0, 0.9), (*FAR, 0, 0.8)), found((*FAR, 0, 0.7))]
    expected = (6 * 1 + 5 * 2 / 3) / 11 if use_07_metric else 0.5 * 1 + 0.5 * 2 / 3
    result = voc_eval(detections, truths, 1, use_07_metric=use_07_metric)
    assert result.ap == [pytest.approx(expected)]
    assert result.mean_ap == pytest.approx(expected)


def test_a_second_claim_is_a_false_positive():
    result = voc_eval([found((*BOX, 0, 0.9), (*NEAR, 0, 0.8))], [truth((*BOX, 0, False))], 1, use_07_metric=False)
    assert result.ap == [1.0]
    assert result.precision[0].tolist() == [1.0, 0.5]


def test_difficult_objects_neither_count_nor_hurt():
    truths = [truth((*BOX, 0, True), (*FAR, 0, False))]
    result = voc_eval([found((*BOX, 0, 0.9), (*NEAR, 0, 0.8), (*FAR, 0, 0.7))], truths, 1)
    assert result.ap == [pytest.approx(1.0)]
    assert result.num_objects == [1]


def test_overlap_counts_inclusive_pixels_and_must_reach_the_threshold():
    # 10 × 10 pixels against the left 5 of them: exactly 0.5, which is enough. One column less is not.
    truths = [truth((1, 1, 10, 10, 0, False))]
    assert voc_eval([found((1, 1, 5, 10, 0, 0.9))], truths, 1).mean_ap == pytest.approx(1)
    assert voc_eval([found((1, 1, 4, 10, 0, 0.9))], truths, 1).mean_ap == 0


def test_absent_classes_are_left_out_of_the_mean():
    result = voc_eval([found((*BOX, 0, 0.9), (*BOX, 1, 0.9))], [truth((*BOX, 0, False), (*FAR, 2, True))], 3)
    assert result.ap[0] == pytest.approx(1)
    assert math.isnan(result.ap[1])
    assert math.isnan(result.ap[2])
    assert result.mean_ap == pytest.approx(1)


def test_no_detections_or_no_objects():
    assert voc_eval([found()], [truth((*BOX, 0, False))], 1).mean_ap == 0
    assert math.isnan(voc_eval([found((*BOX, 0, 0.5))], [truth()], 2).mean_ap)
    assert math.isnan(voc_eval([], [], 1).mean_ap)
    with pytest.raises(ValueError, match="1 images"):
        voc_eval([found()], [], 1)


@pytest.mark.parametrize("use_07_metric", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_plain_loop(seed, use_07_metric):
    detections, truths = random_set(seed)
    result = voc_eval(detections, truths, 4, use_07_metric=use_07_metric)
    expected = [reference.voc_ap(detections, truths, label, use_07_metric) for label in range(4)]
    np.testing.assert_allclose(result.ap, expected, rtol=1e-9)
    assert result.mean_ap == pytest.approx(np.nanmean(expected))


def test_order_of_ties_does_not_matter():
    detections, truths = random_set(7)
    for detection in detections:
        detection["scores"] = np.round(detection["scores"], 1)
    expected = voc_eval(detections, truths, 4).ap
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.permutation(len(truths))
        shuffled = []
        for i in order:
            rows = rng.permutation(len(detections[i]["labels"]))
            shuffled.append({name: value[rows] for name, value in detections[i].items()})
        assert voc_eval(shuffled, [truths[i] for i in order], 4).ap == expected


def test_takes_tensors():
    detections, truths = random_set(1)

    def tensors(entries: list[dict]) -> list[dict]:
        return [{name: torch.as_tensor(value) for name, value in entry.items()} for entry in entries]

    assert voc_eval(tensors(detections), tensors(truths), 4).ap == voc_eval(detections, truths, 4).ap


def test_equal_scores_are_one_point_of_the_curve():
    truths = [truth((*BOX, 0, False), (*FAR, 0, False))]
    detections = [found((*BOX, 0, 0.9), (*BOX, 0, 0.8), (*FAR, 0, 0.8), (*BOX, 0, 0.7), (*BOX, 0, 0.7))]
    result = voc_eval(detections, truths, 2)
    assert result.scores[0].tolist() == [0.9, 0.8, 0.7]
    assert result.counts[0].tolist() == [1, 3, 5]
    assert result.recall[0].tolist() == [0.5, 1, 1]
    np.testing.assert_allclose(result.precision[0], [1, 2 / 3, 2 / 5])
    assert result.num_detections == [5, 0]


def test_a_nan_box_claims_nothing():
    nothing = (math.nan,) * 4
    result = voc_eval([found((*nothing, 0, 0.9), (*BOX, 0, 0.8))], [truth((*BOX, 0, False))], 1, use_07_metric=False)
    assert result.ap == [pytest.approx(0.5)]
