import math

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from ssd.boxes import area, decode, edges_to_voc, encode, iou, to_centers, to_corners, voc_to_edges
from ssd.dbox import make_dbox_list
from tests.helpers import reference


def random_corners(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    return points.flatten(1)


def test_forms_by_hand():
    centers = torch.tensor([[0.5, 0.4, 0.2, 0.6]])
    corners = torch.tensor([[0.4, 0.1, 0.6, 0.7]])
    torch.testing.assert_close(to_corners(centers), corners)
    torch.testing.assert_close(to_centers(corners), centers)


def test_iou_by_hand():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
    torch.testing.assert_close(iou(a, b), torch.tensor([[1 / 7, 1.0, 0.0, 0.0]]))


def test_iou_equals_torchvision_and_numpy():
    a, b = random_corners(40), random_corners(60, seed=1)
    torch.testing.assert_close(iou(a, b), box_iou(a, b))
    expected = [[reference.iou(x, y) for y in b.double().numpy()] for x in a.double().numpy()]
    np.testing.assert_allclose(iou(a, b).numpy(), expected, atol=1e-6)


def test_iou_of_boxes_without_area_is_zero():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert iou(point, point).item() == 0
    assert iou(torch.zeros(0, 4), point).shape == (0, 1)
    assert iou(point, torch.zeros(0, 4)).shape == (1, 0)


def test_encode_by_hand():
    dbox = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    box = torch.tensor([[0.42, 0.3, 0.62, 0.5]])  # centre (0.52, 0.4), size (0.2, 0.2)
    expected = torch.tensor([[0.02 / 0.2 / 0.1, -0.1 / 0.4 / 0.1, 0.0, math.log(0.5) / 0.2]])
    torch.testing.assert_close(encode(box, dbox), expected, atol=1e-5, rtol=1e-5)


def test_encode_and_decode_equal_torchvision():
    dboxes = make_dbox_list()
    boxes = random_corners(len(dboxes))
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    expected = coder.encode_single(boxes, to_corners(dboxes))
    torch.testing.assert_close(encode(boxes, dboxes), expected, atol=2e-3, rtol=1e-4)
    offsets = torch.randn(len(dboxes), 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(decode(offsets, dboxes), coder.decode_single(offsets, to_corners(dboxes)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variances", [(0.1, 0.2), (1.0, 1.0)])
def test_decode_is_the_inverse_of_encode(variances):
    dboxes = make_dbox_list()
    boxes = random_corners(len(dboxes), seed=5)
    boxes[:, 2:] += 1e-3
    offsets = encode(boxes, dboxes, variances)
    torch.testing.assert_close(decode(offsets, dboxes, variances), boxes, atol=1e-5, rtol=1e-4)
    batch = torch.stack([boxes, boxes.flip(0)])
    torch.testing.assert_close(decode(encode(batch, dboxes, variances), dboxes, variances), batch, atol=1e-5, rtol=1e-4)


def test_an_inverted_box_has_no_area_and_no_overlap():
    boxes = torch.tensor([[0.6, 0.6, 0.4, 0.4], [0.6, 0.2, 0.4, 0.4], [0.2, 0.2, 0.4, 0.5]])
    torch.testing.assert_close(area(boxes), torch.tensor([0.0, 0.0, 0.06]))
    torch.testing.assert_close(iou(boxes, boxes[2:])[:, 0], torch.tensor([0.0, 0.0, 1.0]))


def test_encode_of_an_empty_box_is_finite():
    dboxes = make_dbox_list()[:3]
    assert encode(torch.full((3, 4), 0.5), dboxes).isfinite().all()
    assert encode(torch.tensor([[0.6, 0.6, 0.4, 0.4]] * 3), dboxes).isfinite().all()


def test_voc_counts_from_one_and_includes_both_corners():
    # The first pixel of a photo; then the whole of a photo of 40 × 30.
    edges, voc = np.array([[0, 0, 1, 1], [0, 0, 40, 30]], np.float32), np.array([[1, 1, 1, 1], [1, 1, 40, 30]], np.float32)
    np.testing.assert_array_equal(edges_to_voc(edges), voc)
    np.testing.assert_array_equal(voc_to_edges(voc), edges)
    assert edges_to_voc(edges).dtype == np.float32
