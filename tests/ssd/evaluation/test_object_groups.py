import math

import numpy as np
import pytest

from ssd.evaluation.error_kinds import error_kinds
from ssd.evaluation.object_groups import by_crowding, by_size, by_truncation, neighbours, normalised_ap
from ssd.evaluation.voc_eval import area_ap, eleven_point_ap, voc_eval
from tests.helpers.detections import found, random_set, truth

EDGES = (0, 16, 32, 64, 301)
# In a photo of 600 × 300, of which the network sees 300 × 300: 10 and 60 pixels.
SMALL, LARGE, FAR = (1, 1, 20, 10), (101, 101, 220, 160), (401, 201, 420, 210)


def test_by_hand():
    objects = [truth((*SMALL, 0, False), (*LARGE, 0, False)), truth((*LARGE, 0, True))]
    detections = [found((*SMALL, 0, 0.9), (*FAR, 0, 0.8), (*LARGE, 0, 0.7)), found((*LARGE, 0, 0.6))]
    errors = error_kinds(detections, objects, 1, area_ap)
    small, large = by_size(errors, np.array([[600, 300]] * 2), 300, EDGES, 0.75)
    assert small == ("0 to 16", 1, 1, 1)
    # One false before it; of two objects in the class the precision at recall 1 is 2 / 3.
    assert large == ("32 to 64", 1, 0, pytest.approx(2 / 3))


@pytest.mark.parametrize("use_07_metric", [True, False])
def test_a_group_of_all_objects_has_the_overall_ap(use_07_metric):
    detections, truths = random_set(0)
    errors = error_kinds(detections, truths, 4, eleven_point_ap if use_07_metric else area_ap)
    sizes = np.array([[3000, 3000]] * len(truths))  # all objects are below 16 pixels
    (only,) = by_size(errors, sizes, 300, EDGES, 0.5)
    result = voc_eval(detections, truths, 4, use_07_metric=use_07_metric)
    assert only.ap == pytest.approx(result.mean_ap)
    assert only.num_objects == sum(result.num_objects)
    recall = [result.at(label, np.array(0.5))[0] * result.num_objects[label] for label in range(4)]
    assert only.found == pytest.approx(sum(recall) / only.num_objects)


def test_an_average_group_has_the_ap_of_its_class():
    """Every second hit, at the same recall, with all false positives."""
    rng = np.random.default_rng(0)
    hit = rng.random(40000) < 0.5
    scores = np.linspace(1, 0, len(hit))
    mine = hit & (rng.random(len(hit)) < 0.25)
    rows = mine | ~hit
    whole = normalised_ap(hit, scores, hit.sum(), hit.sum(), area_ap)
    assert normalised_ap(mine[rows], scores[rows], mine.sum(), hit.sum(), area_ap) == pytest.approx(whole, abs=0.01)


def test_equal_scores_count_together():
    for hit in ([True, False, True], [False, True, True]):
        assert normalised_ap(np.array(hit), np.array([0.5, 0.5, 0.4]), 2, 2, area_ap) == pytest.approx(2 / 3)


def test_crowding():
    near = (11, 1, 30, 10)  # overlaps SMALL by a third
    objects = [truth((*SMALL, 0, False), (*near, 1, True), (*LARGE, 0, False)), truth((*SMALL, 0, False))]
    errors = error_kinds([found((*SMALL, 0, 0.9), (*LARGE, 0, 0.8)), found()], objects, 2)
    assert neighbours(errors.objects).tolist() == [1, 1, 0, 0]
    alone, crowded = by_crowding(errors, 0.5)
    assert (alone.name, alone.num_objects, alone.found) == ("alone", 2, 0.5)
    assert crowded == ("one neighbour", 1, 1, 1)


def test_truncation_of_annotated_objects():
    objects = [truth((*SMALL, 0, False), (*LARGE, 0, False)), truth((*LARGE, 0, False))]
    errors = error_kinds([found((*LARGE, 0, 0.9)), found((*LARGE, 0, 0.8))], objects, 1, area_ap)
    assert by_truncation(errors, objects, 0.5) == []
    flags = [np.array([0, 1]), np.array([-1])]
    annotated = [{**entry, "truncated": flag} for entry, flag in zip(objects, flags, strict=True)]
    assert by_truncation(errors, annotated, 0.5) == [("whole", 1, 0, 0), ("cut off", 1, 1, 1)]


def test_empty_data_set():
    errors = error_kinds([found()], [truth()], 1)
    assert math.isnan(errors.map_impact["missed"])
    assert by_size(errors, np.array([[10, 10]]), 300, EDGES, 0.5) == by_crowding(errors, 0.5) == []
