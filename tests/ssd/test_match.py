import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from ssd.batch import PADDING, pad_targets
from ssd.boxes import decode, iou, to_corners
from ssd.dbox import make_dbox_list
from ssd.match import match, match_batch
from tests.helpers import reference
from tests.helpers.batches import FOUR, random_objects


def assert_as_reference(boxes, labels, dbox_list, thresh=0.5):
    owner, column = reference.match(boxes.numpy(), labels.numpy(), dbox_list.numpy(), thresh)
    loc, conf = match(boxes, labels, dbox_list, thresh)
    np.testing.assert_array_equal(conf.numpy(), column)
    positives = np.flatnonzero(owner >= 0)
    expected = [reference.encode(boxes[owner[p]].double().numpy(), dbox_list[p].double().numpy()) for p in positives]
    np.testing.assert_allclose(loc[positives].numpy(), np.array(expected).reshape(-1, 4), atol=1e-3)
    assert (loc[owner < 0] == 0).all()


def test_four_boxes_by_hand():
    # Object 0 is DBox 0; object 1 covers the upper half: overlap 0.5 with DBoxes 0, 1 and 3. It may not take DBox 0,
    # so it owns DBox 1, the lower of equals, and DBox 3 (0.5) follows by the threshold. Object 2 has overlap 0.5 with
    # the tall DBox 2.
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 0.5], [0.4, 0.0, 0.6, 0.5]])
    loc, conf = match(boxes, torch.tensor([4, 7, 9]), FOUR)
    assert conf.tolist() == [5, 8, 10, 8]
    assert loc[0].tolist() == [0, 0, 0, 0]
    decoded = decode(loc, FOUR)
    torch.testing.assert_close(decoded[[0, 1, 2, 3]], boxes[[0, 1, 2, 1]], atol=1e-6, rtol=1e-6)


def test_an_owned_dbox_is_never_taken_over():
    # Both objects like DBox 0 best; the closer one gets it, the other the next best, below the threshold though it is.
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.45], [0.0, 0.0, 0.5, 0.5]])
    _, conf = match(boxes, torch.tensor([1, 2]), FOUR, jaccard_thresh=0.6)
    assert conf[0] == 3
    assert (conf == 2).sum() == 1


def test_without_objects_all_is_background():
    loc, conf = match(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), FOUR)
    assert conf.tolist() == [0, 0, 0, 0]
    assert (loc == 0).all()


def test_a_batch_without_objects_has_the_form_of_others():
    empty, full = (match_batch(pad_targets([torch.zeros(count, 5)] * 3), FOUR) for count in (0, 1))
    for part, other in zip(empty, full, strict=True):
        assert (part.shape, part.dtype) == (other.shape, other.dtype)
        assert (part == 0).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 3, 12, 40])
def test_equals_brute_force(count, seed):
    boxes, labels = random_objects(count, seed)
    assert_as_reference(boxes, labels, make_dbox_list())


@pytest.mark.parametrize("spread", [0.0, 0.002, 0.02, 0.1])
def test_a_crowd_that_wants_the_same_dboxes(spread):
    generator = torch.Generator().manual_seed(3)
    boxes = torch.tensor([[0.3, 0.35, 0.5, 0.6]]) + (torch.rand(60, 4, generator=generator) - 0.5) * spread
    assert_as_reference(boxes, torch.arange(60) % 20, make_dbox_list())


def test_objects_tinier_than_any_dbox_and_equal_objects():
    boxes, labels = random_objects(5, 1)
    tiny = torch.tensor([[0.501, 0.502, 0.5015, 0.5025]])
    assert_as_reference(torch.cat([tiny, boxes, boxes, tiny]), torch.cat([labels, labels, labels[:2]]), make_dbox_list())


def test_more_objects_than_dboxes_in_a_region():
    boxes = torch.tensor([[0.3, 0.3, 0.7, 0.7]]).repeat(30, 1) + torch.linspace(0, 0.01, 30)[:, None]
    assert_as_reference(boxes, torch.arange(30) % 20, make_dbox_list())


def test_more_objects_than_dboxes():
    boxes, labels = random_objects(9, 0)
    _, conf = match(boxes, labels, FOUR)
    assert (conf > 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 8)] * 4), max_size=10), st.sampled_from([0.3, 0.5, 0.9]))
def test_equals_brute_force_on_degenerate_boxes(corners, thresh):
    # On a grid of eighths: many equal boxes, equal overlaps and boxes without area.
    rows = [(min(a, c) / 8, min(b, d) / 8, max(a, c) / 8, max(b, d) / 8) for a, b, c, d in corners]
    boxes = torch.tensor(rows).reshape(-1, 4)
    dbox_list = make_dbox_list()[7000:7400]
    labels = torch.arange(len(boxes))
    _, column = reference.match(boxes.numpy(), labels.numpy(), dbox_list.numpy(), thresh)
    np.testing.assert_array_equal(match(boxes, labels, dbox_list, thresh)[1].numpy(), column)


def test_equals_torchvision_where_no_dbox_is_contested():
    # torchvision lets a later object take an earlier one's DBox; apart from that the rules agree.
    dbox_list = make_dbox_list()
    boxes = torch.tensor([[0.05, 0.05, 0.3, 0.35], [0.5, 0.5, 0.95, 0.9], [0.6, 0.1, 0.7, 0.2]])
    matched = SSDMatcher(0.5)(box_iou(boxes, to_corners(dbox_list)))
    expected = torch.where(matched >= 0, matched + 1, 0)
    assert torch.equal(match(boxes, torch.tensor([0, 1, 2]), dbox_list)[1], expected)


def test_a_batch_equals_its_images_and_padding_changes_nothing():
    dbox_list = make_dbox_list()
    images = [random_objects(count, seed) for seed, count in enumerate([3, 0, 17, 1])]
    targets = pad_targets([torch.cat([boxes, labels[:, None].float()], dim=1) for boxes, labels in images])
    more = targets._replace(
        boxes=torch.nn.functional.pad(targets.boxes, (0, 0, 0, 5)),
        labels=torch.nn.functional.pad(targets.labels, (0, 5), value=PADDING),
        objects=targets.objects + 5 * (targets.objects // targets.labels.shape[1]),
    )
    for batch in (match_batch(targets, dbox_list), match_batch(more, dbox_list)):
        for i, (boxes, labels) in enumerate(images):
            loc, conf = match(boxes, labels, dbox_list)
            assert torch.equal(batch.conf[i], conf)
            assert torch.equal(batch.loc[i][conf > 0], loc[conf > 0])


def test_the_order_of_objects_makes_no_difference():
    dbox_list = make_dbox_list()
    boxes, labels = random_objects(12, 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(match(boxes, labels, dbox_list)[1], match(boxes[order], labels[order], dbox_list)[1])


def small_objects(count: int, seed: int) -> torch.Tensor:
    """Boxes of 6 to 24 pixels of 300: each lies inside several DBoxes of one area."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(count, 2, generator=generator) * 0.06 + 0.02
    corner = torch.rand(count, 2, generator=generator) * (1 - sizes)
    return torch.cat([corner, corner + sizes], dim=1)


def test_of_the_dboxes_around_a_small_object_the_nearest_is_its_own():
    dbox_list = make_dbox_list()
    num_ties = 0
    for box in small_objects(60, 0):
        center = (box[:2] + box[2:]) / 2
        corners = to_corners(dbox_list)
        around = ((corners[:, :2] <= box[:2]) & (corners[:, 2:] >= box[2:])).all(dim=1)
        sides = dbox_list[:, 2:].sort(dim=1).values
        smallest = around & (sides.prod(dim=1) < 1.001 * sides[around].prod(dim=1).min())
        num_ties += int(smallest.sum()) > 1
        distance = torch.where(smallest, (dbox_list[:, :2] - center).square().sum(dim=1), torch.inf)
        _, conf = match(box[None], torch.tensor([0]), dbox_list, jaccard_thresh=0.9)
        (own,) = conf.nonzero()[:, 0].tolist()
        if smallest.sum() and iou(box[None], corners)[0].max() <= iou(box[None], corners[smallest])[0].max() + 1e-6:
            assert distance[own] <= distance.min() + 1e-7
    assert num_ties > 20


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_the_order_of_dboxes_decide_nothing(seed):
    """The boxes in float64, and the DBoxes shuffled: each object has the same DBoxes as before."""
    dbox_list = make_dbox_list()
    boxes = torch.cat([small_objects(24, seed), random_objects(10, seed)[0]])
    labels = torch.arange(len(boxes))
    loc, conf = match(boxes, labels, dbox_list)
    double_loc, double_conf = match(boxes.double(), labels, dbox_list.double())
    assert torch.equal(double_conf, conf)
    assert double_loc.dtype == torch.float32
    assert torch.equal(double_loc, loc)
    _, column = reference.match(boxes.numpy(), labels.numpy(), dbox_list.numpy(), 0.5)
    np.testing.assert_array_equal(conf.numpy(), column)
    order = torch.randperm(len(dbox_list), generator=torch.Generator().manual_seed(seed))
    shuffled_loc, shuffled_conf = match(boxes, labels, dbox_list[order])
    # Of the DBoxes of one cell the lower one is taken, so a DBox is known here by its centre and area.
    for label in labels.tolist():
        taken = sorted(zip(*known(dbox_list[conf == label + 1]), strict=True))
        shuffled = sorted(zip(*known(dbox_list[order][shuffled_conf == label + 1]), strict=True))
        assert taken == shuffled
    assert (shuffled_loc.sum() - loc.sum()).abs() < 30


def known(dboxes: torch.Tensor) -> tuple[list, list]:
    """The centre and area of each DBox."""
    return dboxes[:, :2].tolist(), [round(area, 6) for area in dboxes[:, 2:].prod(dim=1).tolist()]


@pytest.mark.parametrize("side", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("thresh", [0.5, 0.3, 0.6])
def test_an_overlap_of_exactly_the_threshold_is_enough(side, thresh):
    """A DBox covered in that part of its width by its object, at many places, whatever float32 makes of the numbers."""
    for i in range(40):
        x, y = 0.011 * i % (1 - side), 0.017 * i % (1 - side)
        dboxes = torch.tensor([[x + side / 2, y + side / 2, side, side]] * 2, dtype=torch.float64)
        box = torch.tensor([[x, y, x + side * thresh, y + side]], dtype=torch.float64)
        for dtype in (torch.float32, torch.float64):
            _, conf = match(box.to(dtype), torch.tensor([0]), dboxes.to(dtype), thresh)
            assert conf.tolist() == [1, 1]
        box[0, 2] -= 1e-4 * side
        assert match(box, torch.tensor([0]), dboxes, thresh)[1].tolist() == [1, 0]
