"""Merging detections in tiles, compared with plain NMS if no box is cut off, and by hand otherwise."""

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from ssd.inference import merge as merging
from ssd.inference.merge import merge
from ssd.inference.tiles import tile_edges

SIZE = np.array([1000, 700])


def all_crops() -> np.ndarray:
    return np.concatenate([[[0, 0, *SIZE]], tile_edges(SIZE[None], 400, 0.2)[1]])


def entry(boxes, labels, scores) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }  # fmt: skip


def entry_in(crop: np.ndarray, boxes: list[list[float]], labels: list[int], scores: list[float]) -> dict[str, torch.Tensor]:
    """Return a perfect network's detections in one crop, given boxes in the photo's pixels."""
    x1, y1, x2, y2 = crop.tolist()
    inside = np.clip(np.array(boxes, float).reshape(-1, 4), [x1, y1, x1, y1], [x2, y2, x2, y2])
    there = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    relative = (inside - [x1, y1, x1, y1]) / np.tile([x2 - x1, y2 - y1], 2)
    return entry(relative[there], np.array(labels)[there], np.array(scores)[there])


@pytest.mark.parametrize("count, top_k", [(6, 200), (60, 200), (300, 20), (300, 5000)])
def test_equals_plain_nms_without_doubtful_boxes(count, top_k):
    crops = all_crops()
    rng = np.random.default_rng(count + top_k)
    found, boxes = [], []
    for number, crop in enumerate(crops):
        # In the whole photo, what is larger than a tile.
        least, most = (0.5, 0.6) if number == 0 else (0.02, 0.25)
        low = rng.uniform(0.02, 0.98 - most, (count, 2))
        relative = np.concatenate([low, low + rng.uniform(least, most, (count, 2))], axis=1).astype(np.float32)
        scores = np.sort(rng.permutation(10**6)[:count])[::-1] / 10**6
        found.append(entry(relative, rng.integers(0, 3, count), scores.copy()))
        boxes.append(relative * np.tile(crop[2:] - crop[:2], 2) + np.tile(crop[:2], 2))
    together = torch.from_numpy(np.concatenate(boxes).astype(np.float32))
    labels, scores = (torch.cat([each[name] for each in found]) for name in ("labels", "scores"))
    kept = batched_nms(together.double(), scores.double(), labels, 0.45)[:top_k]
    merged = merge(found, crops, SIZE, 0.45, top_k)
    np.testing.assert_allclose(merged.boxes, together[kept].numpy(), atol=1e-3)
    assert merged.labels.tolist() == labels[kept].tolist()
    assert merged.scores.tolist() == scores[kept].tolist()


@pytest.mark.parametrize("cut_scores_more", [False, True])
def test_an_object_on_a_tile_edge_is_found_once(cut_scores_more):
    """A tile with a part of it may give the part a higher score than another gives the whole."""
    crops = all_crops()
    edges = np.unique(crops[1:, 2])[:-1]  # right edges of tiles within the photo
    for x in edges:
        box = [x - 40.0, 100.0, x + 12.0, 150.0]
        found = []
        for crop in crops:
            is_whole = crop[0] < box[0] and box[2] < crop[2]
            found.append(entry_in(crop, [box], [1], [0.6 if is_whole or not cut_scores_more else 0.9]))
        assert sum(len(each["scores"]) for each in found) > 2
        merged = merge(found, crops, SIZE, 0.45, 200)
        np.testing.assert_allclose(merged.boxes, [box], atol=1e-3)
        assert merged.labels.tolist() == [1]


def test_cut_off_boxes_give_way_only_to_their_class_and_not_to_unlikely_boxes():
    crops = np.array([[0, 0, 1000, 700], [0, 0, 400, 400], [320, 0, 720, 400]])
    whole, part = [330.0, 100.0, 420.0, 150.0], [330.0, 100.0, 400.0, 150.0]
    nothing = entry([], [], [])

    def remaining(label: int, score: float, thresh: float = 0.45) -> list[tuple[list[float], float]]:
        found = [nothing, entry_in(crops[1], [part], [1], [0.8]), entry_in(crops[2], [whole], [label], [score])]
        merged = merge(found, crops, SIZE, thresh, 200)
        return list(zip(merged.boxes.round().tolist(), merged.scores.astype(float).round(2).tolist(), strict=True))

    assert remaining(1, 0.9) == [(whole, 0.9)]
    assert remaining(1, 0.5) == [(whole, 0.8)]  # it takes over the score
    assert remaining(0, 0.5) == [(part, 0.8), (whole, 0.5)]
    assert remaining(1, 0.3) == [(part, 0.8)]  # their overlap is 7/9
    assert remaining(1, 0.3, thresh=0.8) == [(part, 0.8), (whole, 0.3)]


def test_a_box_of_the_whole_photo_gives_way_to_that_of_a_tile():
    crops = np.array([[0, 0, 1000, 700], [0, 0, 400, 400], [300, 0, 700, 400]])
    fine, coarse = [100.0, 100.0, 112.0, 112.0], [104.0, 105.0, 116.0, 117.0]  # their overlap is 0.24
    alone = [500.0, 500.0, 520.0, 520.0]  # in no tile
    missed = [650.0, 100.0, 670.0, 120.0]  # the tile does not find it
    of_photo = entry_in(crops[0], [coarse, alone, missed], [1] * 3, [0.9, 0.8, 0.7])
    found = [of_photo, entry_in(crops[1], [fine], [1], [0.6]), entry([], [], [])]
    merged = merge(found, crops, SIZE, 0.45, 200)
    assert merged.boxes.round().tolist() == [fine, alone, missed]
    np.testing.assert_allclose(merged.scores, [0.9, 0.8, 0.7], atol=1e-6)


def test_the_edge_of_the_photo_cuts_nothing_off():
    crops = all_crops()[:2]
    at_the_corner = [[0.0, 0.0, 60.0, 60.0], [0.0, 0.0, 20.0, 60.0]]  # the second lies in the first
    found = [entry([], [], []), entry_in(crops[1], at_the_corner, [0, 0], [0.9, 0.5])]
    np.testing.assert_allclose(merge(found, crops, SIZE, 0.45, 200).boxes, at_the_corner, atol=1e-3)


def test_one_crop_is_returned_unchanged():
    boxes = torch.rand(50, 4).sort(dim=1).values
    scores = torch.rand(50).sort(descending=True).values
    merged = merge([entry(boxes.tolist(), [0] * 50, scores.tolist())], np.array([[0, 0, 640, 480]]), SIZE, 0.45, 10)
    assert merged.boxes.tolist() == (boxes * torch.tensor([640.0, 480.0]).repeat(2)).tolist()


def test_no_detections():
    crops = all_crops()
    merged = merge([entry([], [], [])] * len(crops), crops, SIZE, 0.45, 200)
    assert [part.shape for part in merged[:3]] == [(0, 4), (0,), (0,)]


def test_a_suppressed_box_suppresses_no_other():
    """A row of objects that touch: the second gives way to the third, which does not touch the first."""
    boxes = torch.tensor([[14.0, 0, 24, 10], [7, 0, 17, 10], [0, 0, 10, 10]])
    assert merging._better(boxes, torch.tensor([False, True, True])).tolist() == [-1, 0, -1]


@pytest.mark.parametrize("table", [2**20, 400])
def test_better_boxes_equal_a_plain_loop(monkeypatch, table):
    monkeypatch.setattr(merging, "PAIRS", table)
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 100, (120, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 40, (120, 2))], axis=1).astype(np.float32)
    doubtful = rng.random(120) < 0.8
    expected: list[int] = []
    for i, box in enumerate(boxes):
        shares = [0.0]
        for j in range(i):
            sides = np.minimum(box[2:], boxes[j, 2:]) - np.maximum(box[:2], boxes[j, :2])
            share = sides.clip(min=0).prod() / (box[2:] - box[:2]).prod()
            shares.append(share if expected[j] < 0 else 0.0)
        expected.append(int(np.argmax(shares)) - 1 if doubtful[i] and max(shares) > merging.COVERED else -1)
    assert sum(each >= 0 for each in expected) > 20
    assert merging._better(torch.from_numpy(boxes), torch.from_numpy(doubtful)).tolist() == expected


def test_the_table_of_overlaps_is_bounded(monkeypatch):
    crops = all_crops()
    box = [[300.0, 100.0, 360.0, 150.0]]
    found = [entry_in(crop, box * 40, [1] * 40, np.linspace(0.9, 0.1, 40).tolist()) for crop in crops]
    expected = merge(found, crops, SIZE, 0.45, 200)
    monkeypatch.setattr(merging, "PAIRS", 50)
    assert [value.tolist() for value in merge(found, crops, SIZE, 0.45, 200)[:3]] == [value.tolist() for value in expected[:3]]
