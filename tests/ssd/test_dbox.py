from dataclasses import replace
from math import sqrt

import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from ssd.boxes import to_centers
from ssd.dbox import SSD300_COCO, SSD300_VOC, DBoxRow, DBoxSpec, make_dbox_list


def test_numbers_of_the_paper():
    assert SSD300_VOC.boxes_per_cell == (4, 6, 6, 6, 4, 4)
    assert SSD300_VOC.num_dboxes == 8732
    dbox_list = make_dbox_list()
    assert dbox_list.shape == (8732, 4)
    assert dbox_list.dtype == torch.float32
    assert dbox_list.min() >= 0
    assert dbox_list.max() <= 1


def test_first_cell_and_last_box_by_hand():
    dbox_list = make_dbox_list()
    side, large = 30 / 300, sqrt(30 * 60) / 300
    sizes = [(side, side), (large, large), (side * sqrt(2), side / sqrt(2)), (side / sqrt(2), side * sqrt(2))]
    expected = torch.tensor([(4 / 300, 4 / 300, *size) for size in sizes])
    torch.testing.assert_close(dbox_list[:4], expected)
    torch.testing.assert_close(dbox_list[4, :2], torch.tensor([12 / 300, 4 / 300]))  # columns before rows
    torch.testing.assert_close(dbox_list[-1], torch.tensor([0.5, 0.5, 264 / 300 / sqrt(2), 1.0]))


def test_clamping_changes_134():
    plain = make_dbox_list(replace(SSD300_VOC, clip=False))
    assert ((plain != make_dbox_list()).any(dim=1)).sum() == 134


def test_equals_torchvision():
    mins, maxs = [row.min_size for row in SSD300_VOC.maps], [row.max_size for row in SSD300_VOC.maps]
    generator = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[size / 300 for size in [*mins, maxs[-1]]],
        steps=[8, 16, 32, 64, 100, 300],
        clip=False,
    )
    maps = [torch.zeros(1, 1, row.cells, row.cells) for row in SSD300_VOC.maps]
    expected = generator(ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)]), maps)[0]
    plain = make_dbox_list(replace(SSD300_VOC, clip=False))
    torch.testing.assert_close(plain, to_centers(expected) / 300, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("ratios", "count"), [((), 2), ((2,), 4), ((2, 3, 4), 8)])
def test_counts_follow_from_the_rows(ratios, count):
    spec = DBoxSpec((DBoxRow(3, 100, 50, 80, ratios),))
    assert spec.boxes_per_cell == (count,)
    assert len(make_dbox_list(spec)) == spec.num_dboxes == 9 * count


def test_coco_sizes_cover_small_objects():
    assert SSD300_COCO.num_dboxes == 8732
    smallest = make_dbox_list(SSD300_COCO)[0, 2:] * 300
    torch.testing.assert_close(smallest, torch.tensor([21.0, 21.0]))
    assert [row.step for row in SSD300_COCO.maps] == [row.step for row in SSD300_VOC.maps]
