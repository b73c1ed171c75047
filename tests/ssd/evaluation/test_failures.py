import re
from dataclasses import replace

import numpy as np

from ssd.evaluation.error_kinds import KINDS, error_kinds
from ssd.evaluation.failures import fault_picture, fault_text, groups_tables, kinds_table, part_around
from ssd.evaluation.label_faults import label_faults
from ssd.evaluation.voc_eval import area_ap
from ssd.inference.pictures import TRUTH, class_colour
from tests.helpers.detections import BOX, FAR, found, truth, with_faults

CLASSES = ("cat", "<dog>")


def test_kinds_are_sorted_by_impact():
    detections = [found((*BOX, 1, 0.9), (*FAR, 0, 0.8), (*BOX, 0, 0.2))]
    errors = error_kinds(detections, [truth((*BOX, 0, False), (*FAR, 1, False))], 2, area_ap)
    errors = replace(errors, map_impact={**dict.fromkeys(KINDS, 0.0), "missed": 0.1, "both": 0.2})
    rows = re.findall(r"<tr><td>(\w+)<td>([\d.]+)<td class=bar><i style='width:(\d+)%'></i><td>(\d+)", kinds_table(errors, 0.5))
    assert rows[:2] == [("both", "0.200", "100", "0"), ("missed", "0.100", "50", "0")]
    assert {kind: int(count) for kind, _, _, count in rows}["classification"] == 2


def test_groups():
    detections, truths = [found((*BOX, 0, 0.9))], [truth((*BOX, 0, False), (*FAR, 0, False))]
    errors = error_kinds(detections, truths, 1, area_ap)
    sizes, edges = np.array([[300, 300]]), (0, 32, 64, 301)
    text = groups_tables(errors, truths, sizes, 300, edges, 0.5)
    assert "<tr><td>32 to 64<td>2<td>50%<td>0.500" in text
    assert "<tr><td>alone<td>2<td>50%" in text
    assert "truncation" not in text
    flagged = [{**truths[0], "truncated": np.array([1, 0])}]
    text = groups_tables(errors, flagged, sizes, 300, edges, 0.5)
    assert "<tr><td>whole<td>1<td>0%<td>0.000" in text
    assert "<tr><td>cut off<td>1<td>100%<td>1.000" in text


def test_texts_and_pictures_of_faults():
    detections, truths = with_faults()
    errors = error_kinds(detections, truths, 2)
    faults = label_faults(errors, 2)
    texts = sorted(fault_text(errors, faults, CLASSES, rank) for rank in range(4))
    assert texts == [
        "<dog>: wrong class? cat 0.96", "cat: nothing there?", "cat: wrong box? overlap 0.43", "missing label? cat 0.96"
    ]  # fmt: skip
    for rank in range(4):
        picture = fault_picture(errors, faults, CLASSES, np.full((160, 160, 3), 90, np.uint8), rank)
        colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
        assert (TRUTH in colours) == (faults.object[rank] >= 0)
        assert (class_colour(0) in colours) == (faults.detection[rank] >= 0)
        assert max(picture.shape) == 300


def test_the_part_around_boxes_stays_within_the_photo():
    boxes = np.array([[10, 10, 50, 50], [40, 40, 90, 100]], float)
    assert part_around(boxes, 1000, 1000) == (0, 0, 150, 167)
    assert part_around(np.array([[500, 500, 510, 510]], float), 1000, 1000) == (445, 445, 565, 565)
    left, top, right, bottom = part_around(np.array([[299, 0, 300, 2]], float), 300, 2)
    assert 0 <= left < right <= 300
    assert (top, bottom) == (0, 2)
