import pytest
import torch

from ssd.config import ConfigError
from ssd.preparation import CAFFE, IMAGENET, Preparation, prepare
from ssd.system.device import choose_device, choose_precision

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
    assert prepare(pixels, CAFFE).is_contiguous(memory_format=torch.channels_last)


def test_survives_a_checkpoint():
    assert Preparation(**IMAGENET.to_plain()) == IMAGENET


def test_the_mean_is_what_surrounds_an_expanded_photo():
    filled = torch.tensor(IMAGENET.fill, dtype=torch.uint8).expand(1, 4, 4, 3)
    assert prepare(filled, IMAGENET).abs().max() < 0.02


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with pytest.raises(ConfigError, match=r"device: cuda:1 would be shared by the 2 processes .* set device: cuda"):
        choose_device("cuda:1", local_rank=0, local_size=2)
    assert not torch.backends.cudnn.benchmark
    assert choose_device("cuda:1", local_rank=0, local_size=1) == torch.device("cuda:1")
    assert [choose_device("cuda", rank, 2).index for rank in (0, 1)] == [0, 1]
    with pytest.raises(ConfigError, match="cuda:2 is asked for, but there are 2 GPUs"):
        choose_device("auto", 2, 3)
    assert torch.backends.cudnn.benchmark


def test_device_and_precision():
    assert choose_device("cpu") == CPU
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    assert choose_precision("auto", CPU) in (torch.bfloat16, torch.float32)
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        choose_precision("float16", CPU)
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(ConfigError, match="sees no GPU"):
            choose_device("cuda")
