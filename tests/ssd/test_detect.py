import numpy as np
import pytest
import torch
from torchvision.ops import nms

from ssd import detect as detection
from ssd.boxes import decode, encode
from ssd.dbox import make_dbox_list
from ssd.detect import PRE_NMS_TOP_K, detect

DBOXES = make_dbox_list()


def predictions(rows: list[tuple[int, int, float]], num_columns: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """One image: at DBox p the class has about that probability, everywhere else background is certain."""
    conf = torch.zeros(1, len(DBOXES), num_columns)
    conf[..., 0] = 20
    for dbox, label, score in rows:
        conf[0, dbox] = -20
        conf[0, dbox, label + 1] = 0
        conf[0, dbox, 0] = float(np.log((1 - score) / score))
    return torch.zeros(1, len(DBOXES), 4), conf


def test_boxes_labels_and_scores_by_hand():
    loc, conf = predictions([(6000, 2, 0.9), (100, 0, 0.6)])
    wanted = torch.tensor([[0.2, 0.3, 0.5, 0.7]])
    loc[0, 6000] = encode(wanted, DBOXES[6000:6001])[0]
    (found,) = detect(loc, conf, DBOXES)
    assert found["labels"].tolist() == [2, 0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.6]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["boxes"][0], wanted[0], atol=1e-5, rtol=0)


def test_nms_is_per_class():
    near = [8000, 8006]  # neighbours: the same DBox one cell on
    loc, conf = predictions([(near[0], 1, 0.9), (near[1], 1, 0.8)])
    loc[0, near] = encode(torch.tensor([[0.3, 0.3, 0.6, 0.6], [0.31, 0.3, 0.6, 0.6]]), DBOXES[near])
    assert detect(loc, conf, DBOXES)[0]["scores"].shape == (1,)
    assert detect(loc, conf, DBOXES, nms_thresh=0.99)[0]["scores"].shape == (2,)
    other = predictions([(near[0], 1, 0.9), (near[1], 0, 0.8)])[1]
    assert detect(loc, other, DBOXES)[0]["labels"].tolist() == [1, 0]


def test_nothing_found_and_an_empty_batch():
    loc, conf = predictions([])
    (found,) = detect(loc, conf, DBOXES)
    assert found["boxes"].shape == (0, 4)
    assert found["labels"].shape == found["scores"].shape == (0,)
    assert detect(loc[:0], conf[:0], DBOXES) == []


def reference(loc: torch.Tensor, conf: torch.Tensor) -> list[tuple[float, int, torch.Tensor]]:
    """One image's detections, class by class: every box above the threshold, NMS, the best 200."""
    boxes = decode(loc, DBOXES).clamp(0, 1)
    scores = conf.softmax(dim=1)
    rows = []
    for label in range(conf.shape[1] - 1):
        score = scores[:, label + 1]
        order = score.argsort(descending=True, stable=True)[:PRE_NMS_TOP_K]
        order = order[score[order] > 0.01]
        rows += [(score[i].item(), label, boxes[i]) for i in order[nms(boxes[order], score[order], 0.45)]]
    return sorted(rows, key=lambda row: -row[0])[:200]


def crowded() -> tuple[torch.Tensor, torch.Tensor]:
    """The best 2,000 DBoxes all say the same; what else there is to find lies below them."""
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(len(DBOXES), 4, generator=generator)
    best = torch.randperm(len(DBOXES), generator=generator)[:2000]
    loc[best] = encode(torch.tensor([[0.2, 0.3, 0.5, 0.7]]).expand(2000, 4), DBOXES[best])
    conf = torch.randn(len(DBOXES), 5, generator=generator)
    conf[best, 1] += 8
    return loc, conf


def test_equals_an_image_by_image_class_by_class_version():
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(4, len(DBOXES), 4, generator=generator)
    conf = torch.randn(4, len(DBOXES), 5, generator=generator) * 2  # early in training: nearly every box passes
    conf[2, :, 0] += 12
    loc[3], conf[3] = crowded()
    for found, image_loc, image_conf in zip(detect(loc, conf, DBOXES), loc, conf, strict=True):
        rows = reference(image_loc, image_conf)
        assert [label for _, label, _ in rows] == found["labels"].tolist()
        torch.testing.assert_close(torch.tensor([score for score, _, _ in rows]), found["scores"])
        if rows:
            torch.testing.assert_close(torch.stack([box for *_, box in rows]), found["boxes"])


@pytest.mark.parametrize("top_k", [1, 7, 200])
def test_top_k_and_falling_scores(top_k):
    generator = torch.Generator().manual_seed(0)
    conf = torch.randn(2, len(DBOXES), 3, generator=generator)
    for found in detect(torch.zeros(2, len(DBOXES), 4), conf, DBOXES, top_k=top_k):
        assert len(found["scores"]) == top_k
        assert (found["scores"].diff() <= 0).all()


def test_wild_offsets_stay_in_the_image():
    loc, conf = predictions([(0, 0, 0.9)])
    loc[0, 0] = torch.tensor([1e4, -1e4, 1e3, 1e3])
    (found,) = detect(loc, conf, DBOXES)
    assert found["boxes"].isfinite().all()
    assert found["boxes"].min() >= 0
    assert found["boxes"].max() <= 1


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("count", [3, 300, 7000])
def test_what_is_not_finite_displaces_nothing(broken, count):
    """Three sure detections among DBoxes whose logits or offsets are broken, few of them and more than enter NMS."""
    rows = [(8000, 2, 0.9), (100, 0, 0.6), (7500, 1, 0.8)]
    expected = detect(*predictions(rows), DBOXES)[0]
    others = [p for p in range(len(DBOXES)) if p not in (8000, 100, 7500)][:count]
    for place in ("offsets", "logits", "all logits"):
        loc, conf = predictions(rows)
        if place == "offsets":
            conf[0, others] = torch.tensor([-20.0, 0.0, 0.0, 0.0])  # sure of a class
            loc[0, others, 3] = broken
        elif broken < 0:
            continue  # of a logit: a probability of 0
        else:
            conf[0, others, 1 : 2 if place == "logits" else 4] = broken
        (found,) = detect(loc, conf, DBOXES)
        for name, values in expected.items():
            assert torch.equal(found[name], values), place


def test_nms_of_a_class_far_along_is_as_exact_as_of_the_first():
    """Boxes of 6 pixels, pairs of which overlap by a little more or less than the threshold."""
    side = 6 / 300
    kept = []
    for label in (0, 79, 500):
        loc, conf = predictions([], num_columns=502)
        dboxes = torch.arange(0, 80)
        # A shift by d of the side gives an overlap of (1 - d) / (1 + d): 0.45 at d = 0.3793.
        shifts = torch.linspace(0.3793 - 2e-3, 0.3793 + 2e-3, 40, dtype=torch.float64)
        corner = torch.stack([torch.arange(40) % 7, torch.arange(40) // 7], dim=1).double() * 0.13 + 0.03
        first = torch.cat([corner, corner + side], dim=1)
        shifted = first + torch.stack([shifts, shifts * 0], dim=1).repeat(1, 2) * side
        loc[0, dboxes] = encode(torch.cat([first, shifted]), DBOXES[dboxes].double()).float()
        conf[0, dboxes] = -20
        conf[0, dboxes, label + 1] = torch.linspace(9, 5, 80)
        (found,) = detect(loc, conf, DBOXES)
        assert set(found["labels"].tolist()) == {label}
        kept.append(len(found["labels"]))
    assert 55 <= kept[0] <= 65
    assert kept == [kept[0]] * 3


def test_half_precision_predictions_are_taken_to_float32():
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(1, len(DBOXES), 4, generator=generator).half()
    conf = torch.randn(1, len(DBOXES), 3, generator=generator).half()
    (half,), (full,) = detect(loc, conf, DBOXES), detect(loc.float(), conf.float(), DBOXES)
    for name, values in full.items():
        assert half[name].dtype == values.dtype
        assert torch.equal(half[name], values)


def test_a_score_has_to_exceed_the_threshold():
    conf = torch.zeros(1, len(DBOXES), 2)
    conf[..., 0] = 20
    conf[0, 50, 0] = 0  # exactly 0.5
    loc = torch.zeros(1, len(DBOXES), 4)
    assert len(detect(loc, conf, DBOXES, score_thresh=0.5)[0]["scores"]) == 0
    assert detect(loc, conf, DBOXES, score_thresh=0.499)[0]["scores"].tolist() == [0.5]


def test_lower_boxes_are_looked_at_only_where_they_could_count(monkeypatch):
    """Early in training nearly all boxes pass the threshold, and the best thousand leave enough."""
    looks = []

    def counted(loc, *arguments, num_best):
        looks.append((len(loc), num_best))
        return original(loc, *arguments, num_best=num_best)

    original = detection._detect
    monkeypatch.setattr(detection, "_detect", counted)
    generator = torch.Generator().manual_seed(0)
    loc, conf = torch.zeros(3, len(DBOXES), 4), torch.randn(3, len(DBOXES), 5, generator=generator)
    loc[1], conf[1] = crowded()
    conf[2, :, 0] += 30  # nothing passes
    detect(loc, conf, DBOXES)
    assert looks == [(3, 1000), (1, len(DBOXES))]


def test_a_cut_leaves_out_what_scores_less_than_all_that_is_kept():
    """Of the DBoxes that are kept, the lower classes are no better than the DBoxes that were cut off: they wait for the second
    look, or a box would be suppressed by none of those that come before it."""
    num_kept, top_k = 5, 1000
    scores = torch.zeros(1, len(DBOXES), 2)
    scores[0, : 2 * num_kept, 0] = torch.linspace(0.9, 0.5, 2 * num_kept)
    scores[0, :num_kept, 1] = 0.3  # below the least score of the kept ones
    loc = torch.zeros(1, len(DBOXES), 4)
    (found,), complete = detection._detect(loc, scores, DBOXES, 0.01, 1.0, top_k, num_best=num_kept)
    assert complete == [False]
    assert found["labels"].tolist() == [0] * (num_kept - 1)
    assert found["scores"].min() > scores[0, num_kept - 1, 0]
