import math

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from ssd.batch import Targets, pad_targets
from ssd.boxes import to_corners
from ssd.dbox import make_dbox_list
from ssd.loss import MultiBoxLoss, _kth_largest, hard_negative_mining
from ssd.match import Matched, match_batch
from tests.helpers import reference
from tests.helpers.batches import FOUR, random_targets

DBOXES = make_dbox_list()


def predictions(num_images: int, num_columns: int = 21, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(num_images, len(DBOXES), 4, generator=generator, requires_grad=True)
    conf = torch.randn(num_images, len(DBOXES), num_columns, generator=generator, requires_grad=True)
    return loc, conf


def test_four_boxes_by_hand():
    # One object on DBox 0; DBox 3 overlaps it by a quarter, the others by less. loc predicts an offset wrong by 0.5 in
    # one entry and by 3 in another: smooth L1 gives 0.125 + 2.5. Three negatives for one positive: all there are.
    loc = torch.zeros(1, 4, 4)
    loc[0, 0] = torch.tensor([0.5, 0.0, -3.0, 0.0])
    conf = torch.zeros(1, 4, 3)
    conf[0, 1, 0] = 2.0  # a confident background
    target = torch.tensor([[0.0, 0.0, 0.5, 0.5, 1.0]])
    loss_l, loss_c = MultiBoxLoss()((loc, conf, FOUR), [target])
    assert loss_l.item() == pytest.approx(2.625)
    confident = -2 + np.log(np.exp(2) + 2)
    assert loss_c.item() == pytest.approx(3 * np.log(3) + confident)
    only_one = MultiBoxLoss(neg_pos=1)((loc, conf, FOUR), [target])[1]
    assert only_one.item() == pytest.approx(2 * np.log(3))


@pytest.mark.parametrize("min_neg", [0, 40])
@pytest.mark.parametrize("counts", [[0, 0], [3], [1, 0, 5], [12, 2, 30, 1]])
def test_equals_plain_numpy(counts, min_neg):
    """`min_neg` negatives count in a photo without objects too; the divisor stays the positives of the batch, at least 1."""
    loc, conf = predictions(len(counts))
    targets = random_targets(counts)
    loss_l, loss_c = MultiBoxLoss(min_neg=min_neg)((loc, conf, DBOXES), targets)
    double = [tensor.detach().double().numpy() for tensor in (loc, conf, DBOXES)]
    expected = reference.loss(*double, [rows.double().numpy() for rows in targets], min_neg=min_neg)
    assert loss_l.item() == pytest.approx(expected[0], rel=1e-4)
    assert loss_c.item() == pytest.approx(expected[1], rel=1e-4)


def test_class_weights_scale_the_terms_of_their_class_alone():
    """Neither mining nor the divisor changes; the paths of CPU and GPU agree."""
    loc, conf = predictions(2, num_columns=4)
    targets = [torch.tensor([[0.1, 0.1, 0.6, 0.6, 0], [0.5, 0.5, 0.9, 0.95, 2.0]]), torch.tensor([[0.2, 0.2, 0.7, 0.7, 1.0]])]
    plain, weighted = MultiBoxLoss(), MultiBoxLoss(class_weights=torch.tensor([1.0, 1.0, 1.0, 5.0]))
    matched = plain.match(pad_targets(targets), DBOXES)
    count = plain.num_positives(matched)
    entropy = torch.nn.functional.cross_entropy(conf.flatten(0, 1), matched.conf.flatten(), reduction="none")
    extra = 4 * entropy[matched.conf.flatten() == 3].sum() / count
    before, after = plain((loc, conf, DBOXES), targets), weighted((loc, conf, DBOXES), targets)
    assert after[0].item() == before[0].item()
    assert after[1].item() == pytest.approx((before[1] + extra).item(), rel=1e-5)
    sums = weighted.sums((loc, conf, DBOXES), pad_targets(targets)).sum(dim=0)
    assert sums[1].item() / sums[2].item() == pytest.approx(after[1].item(), rel=1e-5)


def test_equals_torchvision_where_no_dbox_is_contested():
    rows = torch.tensor([[0.05, 0.05, 0.3, 0.35, 2], [0.5, 0.5, 0.95, 0.9, 7], [0.6, 0.1, 0.7, 0.2, 0]])
    loc, conf = predictions(1)
    matched = SSDMatcher(0.5)(box_iou(rows[:, :4], to_corners(DBOXES)))

    class Loss:  # what SSD.compute_loss reads of its model
        box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
        neg_to_pos_ratio = 3

    expected = SSD.compute_loss(
        Loss(),  # pyright: ignore[reportArgumentType]
        [{"boxes": rows[:, :4], "labels": rows[:, 4].long() + 1}],
        {"bbox_regression": loc, "cls_logits": conf},
        [to_corners(DBOXES)],
        [matched],
    )
    loss_l, loss_c = MultiBoxLoss()((loc, conf, DBOXES), [rows])
    torch.testing.assert_close(loss_l, expected["bbox_regression"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss_c, expected["classification"], rtol=1e-4, atol=1e-4)


def test_gradient_equals_finite_differences():
    dboxes = DBOXES[8000:8040].double()
    rows = torch.tensor([[0.1, 0.1, 0.5, 0.6, 0], [0.4, 0.3, 0.9, 0.9, 1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(1, 40, 4, generator=generator, requires_grad=True)
    conf = torch.randn(1, 40, 3, generator=generator, requires_grad=True)
    criterion = MultiBoxLoss()
    sum(criterion((loc, conf, dboxes), [rows])).backward()
    for tensor, place in ((loc, (0, 20, 1)), (conf, (0, 25, 0)), (conf, (0, 3, 2))):
        ends = []
        for step in (1e-2, -1e-2):
            moved = [t.detach().clone() for t in (loc, conf)]
            moved[0 if tensor is loc else 1][place] += step
            ends.append(sum(criterion((*moved, dboxes), [rows])).item())
        assert tensor.grad is not None
        assert tensor.grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-2, abs=5e-3)


@pytest.mark.parametrize("num_images", [1, 3])
def test_a_batch_without_objects_gives_zero_and_a_finite_gradient(num_images):
    loc, conf = predictions(num_images)
    loss_l, loss_c = MultiBoxLoss()((loc, conf, DBOXES), [torch.zeros(0, 5)] * num_images)
    (loss_l + loss_c).backward()
    assert loss_l.item() == 0
    assert loss_c.item() == 0
    assert loc.grad is not None
    assert conf.grad is not None
    assert (loc.grad == 0).all()
    assert (conf.grad == 0).all()


def test_thousands_of_objects():
    loc, conf = predictions(1)
    losses = MultiBoxLoss()((loc, conf, DBOXES), random_targets([2000]))
    assert all(loss.isfinite() for loss in losses)


def test_permuting_images_changes_nothing():
    loc, conf = predictions(3)
    targets = random_targets([4, 0, 7])
    order = [2, 0, 1]
    one = MultiBoxLoss()((loc, conf, DBOXES), targets)
    other = MultiBoxLoss()((loc[order], conf[order], DBOXES), [targets[i] for i in order])
    torch.testing.assert_close(one, other)


def test_list_and_padded_batch_are_the_same():
    loc, conf = predictions(2)
    targets = random_targets([2, 9])
    assert MultiBoxLoss()((loc, conf, DBOXES), targets) == MultiBoxLoss()((loc, conf, DBOXES), pad_targets(targets))


def test_half_precision_predictions_give_a_float32_loss():
    loc, conf = predictions(2)
    targets = random_targets([2, 5])
    exact = MultiBoxLoss()((loc, conf, DBOXES), targets)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = MultiBoxLoss()((loc.to(dtype), conf.to(dtype), DBOXES), targets)
        assert rounded[0].dtype == torch.float32
        torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize("targets", [[torch.zeros(2, 4)], [torch.zeros(5)], [torch.zeros(0, 5)] * 2])
def test_targets_of_another_form_are_refused(targets):
    loc, conf = predictions(1)
    with pytest.raises(ValueError, match="targets"):
        MultiBoxLoss()((loc, conf, DBOXES), targets)


@pytest.mark.parametrize("min_neg", [0, 4, 1000])
@pytest.mark.parametrize("neg_pos", [0, 1, 3, 1000])
def test_mining_takes_the_hardest(neg_pos, min_neg):
    generator = torch.Generator().manual_seed(1)
    loss = torch.rand(4, 50, generator=generator)
    positive = torch.rand(4, 50, generator=generator) < torch.tensor([0.0, 0.02, 0.2, 1.0])[:, None]
    chosen = hard_negative_mining(loss, positive, neg_pos, min_neg)
    assert not (chosen & positive).any()
    for row in range(4):
        negatives = [i for i in range(50) if not positive[row, i]]
        hardest = sorted(negatives, key=lambda i: -loss[row, i].item())
        expected = hardest[: max(neg_pos * int(positive[row].sum()), min_neg)]
        assert sorted(chosen[row].nonzero()[:, 0].tolist()) == sorted(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_mining_takes_losses_of_any_precision(dtype):
    loss = torch.tensor([[0.5, -2.0, 3.0, 0.0, 1.0, -0.5, 2.0]], dtype=dtype)
    positive = torch.tensor([[False, False, True, False, False, False, False]])
    assert hard_negative_mining(loss, positive)[0].nonzero()[:, 0].tolist() == [0, 4, 6]
    assert hard_negative_mining(loss, positive, 5)[0].nonzero()[:, 0].tolist() == [0, 3, 4, 5, 6]


def test_the_kth_largest_is_that_of_a_sorted_row():
    """Of each row another k; among the numbers both ends of int32, equal ones, and rows of one sign."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-(2**31), 2**31, (6, 40), generator=generator).int()
    values[1:3] %= 5
    values[2:4] -= 3
    values[4], values[5, :4] = values[4].abs(), torch.tensor([-(2**31), 2**31 - 1, 0, -1])
    falling = values.sort(dim=1, descending=True).values
    for first in range(40):
        k = (first + 7 * torch.arange(6)[:, None]) % 40 + 1
        assert torch.equal(_kth_largest(values, k), falling.gather(1, k - 1))
    assert (_kth_largest(values, torch.zeros(6, 1)) == 2**31 - 1).all()


def test_targets_are_taken_to_the_device_that_is_named():
    places = []

    class Watched(MultiBoxLoss):
        def match(self, targets: Targets, dbox_list: torch.Tensor) -> Matched:
            places.append(targets.labels.device.type)
            return match_batch(pad_targets(random_targets([2])), dbox_list)

    for device in (None, "meta"):
        Watched(device=device)((*predictions(1), DBOXES), random_targets([2]))
    assert places == ["cpu", "meta"]


def test_mining_of_equal_losses_takes_the_exact_number_in_order():
    positive = torch.zeros(1, 10, dtype=torch.bool)
    positive[0, 2] = True
    assert hard_negative_mining(torch.ones(1, 10), positive, 3)[0].nonzero()[:, 0].tolist() == [0, 1, 3]


@pytest.mark.parametrize("counts", [[3, 0, 7], [0, 0]])
def test_picked_rows_and_all_rows_give_the_same(counts, monkeypatch):
    """What a CPU does, and what GPUs and compiled code do."""
    results = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        loc, conf = predictions(len(counts))
        losses = MultiBoxLoss(min_neg=20)((loc, conf, DBOXES), random_targets(counts))
        (losses[0] + 2 * losses[1]).backward()
        results.append((*losses, loc.grad, conf.grad))
    for picked, dense in zip(*results, strict=True):
        torch.testing.assert_close(picked, dense)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("compiling", [False, True], ids=["picked", "dense"])
def test_what_does_not_count_need_not_be_finite(value, compiling, monkeypatch):
    """Offsets of a DBox at background, and logits of an image of which nothing counts: in the losses and their gradients."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    loc, conf = predictions(2)
    targets = random_targets([3, 0])
    matched = MultiBoxLoss().match(pad_targets(targets), DBOXES)
    wild = (matched.conf[0] == 0).nonzero()[0, 0]
    expected, found = [], []
    for results in (expected, found):
        losses = MultiBoxLoss()((loc, conf, DBOXES), targets)
        (losses[0] + losses[1]).backward()
        results += [*losses, loc.grad, conf.grad, MultiBoxLoss().sums((loc, conf, DBOXES), pad_targets(targets))]
        loc.grad = conf.grad = None
        with torch.no_grad():
            loc[0, wild], conf[1, wild, 1] = value, value
    for each, other in zip(found, expected, strict=True):
        assert torch.equal(each, other)
