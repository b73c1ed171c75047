import numpy as np
import pytest

from ssd.evaluation.error_kinds import error_kinds
from ssd.evaluation.label_faults import ALIKE, FAULTS, found_share, label_faults, share_right
from tests.helpers.detections import BOX, FAR, NEAR, found, random_set, truth, with_faults


def test_each_kind_once():
    detections, truths = with_faults()
    errors = error_kinds(detections, truths, 2)
    faults = label_faults(errors, 2)
    first = {FAULTS[faults.kind[i]]: int(faults.image[i]) for i in range(4)}
    assert first == dict(zip(FAULTS, range(60, 64), strict=True))
    # A place in the list for each label, and one for what is missing.
    assert sorted(faults.object.tolist()) == [-1, *range(len(errors.objects.labels))]
    for rank in range(4):
        image = faults.image[rank]
        detection, number = faults.detection[rank], faults.object[rank]
        assert detection < 0 or errors.found.image[detection] == image
        assert number < 0 or errors.objects.image[number] == image
        assert (detection < 0) == (FAULTS[faults.kind[rank]] == "nothing there")
        assert (number < 0) == (FAULTS[faults.kind[rank]] == "missing")


def test_difficult_objects_are_skipped_and_explain_detections():
    detections, truths = with_faults()
    detections.append(found((*BOX, 0, 0.96)))
    truths.append(truth((*BOX, 0, True)))
    faults = label_faults(error_kinds(detections, truths, 2), 2)
    assert 64 not in faults.image


def test_detections_of_one_missing_label_are_one_fault():
    detections, truths = with_faults()
    detections[60] = found((*BOX, 0, 0.96), (*NEAR, 1, 0.95), (*FAR, 0, 0.94))
    faults = label_faults(error_kinds(detections, truths, 2), 2)
    assert [FAULTS[kind] for kind in faults.kind[faults.image == 60]] == ["missing", "missing"]


def test_kinds_alternate():
    detections, truths = with_faults()
    detections += detections[60:62] * 2
    truths += truths[60:62] * 2
    faults = label_faults(error_kinds(detections, truths, 2), 2)
    contradicted = [FAULTS[kind] for kind in faults.kind if FAULTS[kind] in ("missing", "wrong class")]
    assert sorted(contradicted[:2]) == sorted(contradicted[2:4]) == ["missing", "wrong class"]


def test_share_right_by_hand():
    # At about 0.975: 30 right, 10 wrong of class 0 and 5 right of class 1, to which 5 of all are counted; at 0.525 none.
    rows = [(*BOX, 0, 0.975)] * 30
    detections = [found(row) for row in rows] + [found((*FAR, 0, 0.975))] * 10 + [found((*BOX, 1, 0.975))] * 5
    truths = [truth((*BOX, 0, False))] * 40 + [truth((*BOX, 1, False))] * 5
    share = share_right(error_kinds(detections, truths, 2), 2)
    overall = 35 / 45
    assert share[:40] == pytest.approx((30 + 5 * overall) / 45)
    assert share[40:] == pytest.approx((5 + 5 * overall) / 10)


def test_found_share_equals_the_plain_loop():
    detections, truths = random_set(3, images=60)
    errors = error_kinds(detections, truths, 4)
    support = np.random.default_rng(0).random(len(errors.objects.labels)).round(1)
    share = found_share(errors, support)
    boxes, labels = errors.objects.boxes, errors.objects.labels
    areas = [(x2 - x1 + 1) * (y2 - y1 + 1) for x1, y1, x2, y2 in boxes]
    for i in range(len(labels)):
        in_order = sorted((j for j in range(len(labels)) if labels[j] == labels[i]), key=lambda j: areas[j])
        place = in_order.index(i)
        begin = max(0, min(place - ALIKE // 2, len(in_order) - ALIKE - 1))
        alike = in_order[begin : begin + ALIKE + 1]
        assert share[i] == pytest.approx(sum(support[j] > support[i] for j in alike) / (len(alike) + 1))


def test_empty_data_set():
    faults = label_faults(error_kinds([found()], [truth()], 2), 2)
    assert len(faults.kind) == 0
    assert label_faults(error_kinds([found((*BOX, 0, 0.9))], [truth()], 2), 2).suspicion.tolist() == []
