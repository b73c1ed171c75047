import pytest
import torch

from ssd.preparation import CAFFE, IMAGENET, Preparation, prepare

CPU = torch.device("cpu")


def test_by_hand():
    pixels = torch.tensor([[[[255, 128, 0]]]], dtype=torch.uint8)
    red, green, blue = prepare(pixels, IMAGENET).flatten().tolist()
    assert red == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)
    assert green == pytest.approx((128 / 255 - 0.456) / 0.224, abs=1e-4)
    assert blue == pytest.approx(-0.406 / 0.225, abs=1e-4)
    assert prepare(pixels, CAFFE).flatten().tolist() == [132.0, 11.0, -104.0]


def test_channel_order_and_memory():
    pixels = torch.randint(0, 256, (2, 300, 300, 3), dtype=torch.uint8)
    turned = CAFFE._replace(channel_order="bgr")
    assert torch.equal(prepare(pixels, turned), prepare(pixels, CAFFE).flip(1))
    assert prepare(pixels, CAFFE).shape == (2, 3, 300, 300)
    for preparation in (CAFFE, turned):
        plain = prepare(pixels, preparation)
        assert plain.is_contiguous(memory_format=torch.channels_last)
        other = prepare(pixels, preparation, memory_format=torch.contiguous_format)
        assert other.is_contiguous()
        assert torch.equal(other, plain)


def test_survives_a_checkpoint():
    assert Preparation(**IMAGENET.to_plain()) == IMAGENET


def test_the_mean_is_what_surrounds_an_expanded_photo():
    filled = torch.tensor(IMAGENET.fill, dtype=torch.uint8).expand(1, 4, 4, 3)
    assert prepare(filled, IMAGENET).abs().max() < 0.02
