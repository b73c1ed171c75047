import numpy as np
import pytest
import torch

from ssd.inference.tiles import tile_edges
from ssd.preprocessing import CAFFE, IMAGENET, Preprocessing, normalize

CPU = torch.device("cpu")


def test_by_hand():
    pixels = torch.tensor([[[[255, 128, 0]]]], dtype=torch.uint8)
    red, green, blue = normalize(pixels, IMAGENET).flatten().tolist()
    assert red == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)
    assert green == pytest.approx((128 / 255 - 0.456) / 0.224, abs=1e-4)
    assert blue == pytest.approx(-0.406 / 0.225, abs=1e-4)
    assert normalize(pixels, CAFFE).flatten().tolist() == [132.0, 11.0, -104.0]


def test_channel_order_and_memory():
    pixels = torch.randint(0, 256, (2, 300, 300, 3), dtype=torch.uint8)
    turned = CAFFE._replace(channel_order="bgr")
    assert torch.equal(normalize(pixels, turned), normalize(pixels, CAFFE).flip(1))
    assert normalize(pixels, CAFFE).shape == (2, 3, 300, 300)
    for preprocessing in (CAFFE, turned):
        plain = normalize(pixels, preprocessing)
        assert plain.is_contiguous(memory_format=torch.channels_last)
        other = normalize(pixels, preprocessing, memory_format=torch.contiguous_format)
        assert other.is_contiguous()
        assert torch.equal(other, plain)


def test_survives_a_checkpoint():
    assert Preprocessing.from_plain(IMAGENET.to_plain()) == IMAGENET


def test_the_mean_is_what_surrounds_an_expanded_photo():
    filled = torch.tensor(IMAGENET.fill, dtype=torch.uint8).expand(1, 4, 4, 3)
    assert normalize(filled, IMAGENET).abs().max() < 0.02


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.3, 1 / 60, 0.8])
@pytest.mark.parametrize("size", [60, 61])
def test_tiles_cover_photos_and_overlap(size, overlap):
    """Pixel by pixel."""
    sizes = np.array([(50, 60), (61, 60), (60, 300), (1, 200), (180, 131), (397, 62)])
    photo, tiles = tile_edges(sizes, size, overlap)
    assert photo.tolist() == sorted(photo.tolist())
    for i, (width, height) in enumerate(sizes.tolist()):
        own = tiles[photo == i]
        if max(width, height) <= size:
            assert not len(own)
            continue
        x1, y1, x2, y2 = own.T
        assert (x2 - x1 == min(size, width)).all()
        assert (y2 - y1 == min(size, height)).all()
        seen = np.zeros((height, width), int)
        for left, top, right, bottom in own.tolist():
            seen[top:bottom, left:right] += 1
        assert seen.min() >= 1
        for low, high, side in ((np.unique(x1), np.unique(x2), width), (np.unique(y1), np.unique(y2), height)):
            assert (low[0], high[-1]) == (0, side)
            common = high[:-1] - low[1:]
            assert (common >= overlap * size - 1e-6).all()
            # One tile less would not do.
            assert len(low) == 1 or side > size + (len(low) - 2) * np.floor(size * (1 - overlap) + 1e-6)
        assert len(own) == len(np.unique(x1)) * len(np.unique(y1))
        assert own.tolist() == sorted(own.tolist(), key=lambda each: (each[1], each[0]))


def test_tiles_that_share_one_pixel():
    _, tiles = tile_edges(np.array([[119, 60]]), 60, 1 / 60)
    assert tiles.tolist() == [[0, 0, 60, 60], [59, 0, 119, 60]]
