"""Properties that hold for any data, on inputs that Hypothesis generates."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssd.batch import PADDING, pad_targets
from ssd.boxes import decode, encode, iou, to_corners
from ssd.dbox import make_dbox_list
from ssd.evaluation.voc_eval import voc_eval
from ssd.loss import MultiBoxLoss
from ssd.match import match
from ssd.model import SSD300
from tests.helpers import reference
from tests.helpers.batches import random_targets

DBOXES = make_dbox_list()
NUM_CLASSES = 4

unit = st.floats(0, 1, width=32)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)  # includes points, lines and the whole image
tiny = st.tuples(unit, unit, st.floats(1e-5, 1e-2)).map(lambda c: (c[0], c[1], min(1, c[0] + c[2]), min(1, c[1] + c[2])))
on_a_dbox = st.integers(0, len(DBOXES) - 1).map(lambda p: tuple(to_corners(DBOXES[p]).clamp(0, 1).tolist()))
crowd = st.tuples(on_a_dbox, st.integers(2, 12)).map(lambda c: [c[0]] * c[1])  # equal boxes that compete for one DBox
region = st.tuples(unit, unit, st.lists(st.tuples(*[st.floats(0.01, 0.03)] * 2), min_size=10, max_size=20)).map(
    lambda c: [(c[0] * 0.9, c[1] * 0.9, c[0] * 0.9 + w, c[1] * 0.9 + h) for w, h in c[2]]
)  # more objects than DBoxes nearby
objects = st.one_of(st.lists(st.one_of(boxes, tiny, on_a_dbox), max_size=12), crowd, region)


def as_target(rows: list[tuple[float, ...]], seed: int = 0) -> torch.Tensor:
    """Return boxes with random classes, `[G, 5]`."""
    labels = torch.randint(0, NUM_CLASSES, (len(rows), 1), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), labels.float()], dim=1)


@settings(max_examples=60, deadline=None)
@given(objects, st.sampled_from([0.35, 0.5, 0.7]))
def test_match_equals_brute_force(rows, thresh):
    target = as_target(rows)
    owner, column = reference.match(target[:, :4].numpy(), target[:, 4].int().numpy(), DBOXES.numpy(), thresh)
    loc, conf = match(target[:, :4], target[:, 4], DBOXES, thresh)
    np.testing.assert_array_equal(conf.numpy(), column)
    assert loc.isfinite().all()
    assert (owner >= 0).sum() >= len(rows)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(unit, unit, st.floats(2**-10, 1, width=32), st.floats(2**-10, 1, width=32)), min_size=1, max_size=8),
    st.data(),
)
def test_decode_inverts_encode(rows, data):
    centers = torch.tensor(rows)
    dboxes = DBOXES[torch.tensor(data.draw(st.lists(st.integers(0, 8731), min_size=len(rows), max_size=len(rows))))]
    corners = to_corners(centers)
    torch.testing.assert_close(decode(encode(corners, dboxes), dboxes), corners, atol=2e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(objects, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_loss_ignores_image_order_and_padding(images, random):
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(len(images), len(DBOXES), 4, generator=generator)
    conf = torch.randn(len(images), len(DBOXES), NUM_CLASSES + 1, generator=generator)
    targets = [as_target(rows, i) for i, rows in enumerate(images)]
    criterion = MultiBoxLoss()
    expected = criterion((loc, conf, DBOXES), targets)
    assert torch.stack(expected).isfinite().all()

    order = random.sample(range(len(images)), len(images))
    permuted = criterion((loc[order], conf[order], DBOXES), [targets[i] for i in order])
    torch.testing.assert_close(permuted, expected, rtol=1e-4, atol=1e-4)

    padded = pad_targets(targets)
    num_slots = padded.labels.shape[1]
    more = padded._replace(
        boxes=torch.nn.functional.pad(padded.boxes, (0, 0, 0, 3), value=0.5),
        labels=torch.nn.functional.pad(padded.labels, (0, 3), value=PADDING),
        objects=padded.objects + 3 * (padded.objects // max(1, num_slots)),
    )
    assert torch.equal(torch.stack(criterion((loc, conf, DBOXES), more)), torch.stack(expected))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(boxes, max_size=6, unique=True), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_the_loss_ignores_object_order(images, random):
    """If objects overlap a DBox equally, the first one takes it, so all objects here differ."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(len(images), len(DBOXES), 4, generator=generator)
    conf = torch.randn(len(images), len(DBOXES), NUM_CLASSES + 1, generator=generator)
    targets = [as_target(rows, i) for i, rows in enumerate(images)]
    for target in filter(len, targets):
        best = iou(target[:, :4], to_corners(DBOXES))
        positive = best[:, (best >= 0.5).any(dim=0)]
        contested = ((positive == positive.amax(dim=0)).sum(dim=0) > 1).any() or (best.amax(dim=1) == 0).any()
        assume(not contested and len(set(best.amax(dim=1).tolist())) == len(best))
    shuffled = [target[random.sample(range(len(target)), len(target))] for target in targets]
    criterion = MultiBoxLoss()
    found, expected = (criterion((loc, conf, DBOXES), each) for each in (shuffled, targets))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


pixels = st.tuples(*[st.integers(1, 40)] * 2, *[st.integers(0, 20)] * 2).map(lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3]))
label = st.integers(0, 2)
score = st.sampled_from([0.1, 0.5, 0.5, 0.9])  # with ties
true_rows = st.lists(st.tuples(pixels, label, st.booleans()), max_size=4)
found_rows = st.lists(st.tuples(pixels, label, score), max_size=6)
photos = st.lists(st.tuples(true_rows, found_rows), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(photos, st.booleans(), st.randoms(use_true_random=False))
def test_ap_ignores_photo_order(images, use_07_metric, random):
    def evaluate(order: list[int]) -> list[float]:
        truths = [as_arrays(images[i][0], "difficult", bool) for i in order]
        found = [as_arrays(images[i][1], "scores", float) for i in order]
        return voc_eval(found, truths, 3, use_07_metric=use_07_metric).ap

    expected = evaluate(list(range(len(images))))
    np.testing.assert_allclose(evaluate(random.sample(range(len(images)), len(images))), expected, atol=1e-12)


def as_arrays(rows: list, name: str, kind: type) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array([row[0] for row in rows], float).reshape(-1, 4),
        "labels": np.array([row[1] for row in rows], int),
        name: np.array([row[2] for row in rows], kind),
    }


@pytest.mark.parametrize(("batch_norm", "least"), [("none", 0.999), ("backbone", 0.7)])
def test_half_precision_agrees_with_float32(batch_norm, least):
    """bfloat16 keeps 8 bits of a number: losses within 1 %, gradients in the same direction.

    Batch normalisation in the last layers divides by the spread of a handful of values, which makes much of little errors.
    """
    torch.manual_seed(0)
    model, criterion = SSD300(21, batch_norm=batch_norm, width=0.1), MultiBoxLoss()
    images, targets = torch.randn(4, 3, 300, 300), pad_targets(random_targets([3, 0, 12, 1]))
    losses, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            predictions = model(images)
        losses.append(torch.stack(criterion(predictions, targets)))
        of_layers = torch.autograd.grad(losses[-1].sum(), list(model.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in of_layers]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)
    assert torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0) > least
