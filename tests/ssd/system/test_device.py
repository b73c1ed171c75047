from itertools import product

import pytest
import torch

from ssd.config import ConfigError
from ssd.system import device
from ssd.system.device import choose_device, choose_precision, choose_training_format, device_name

CPU = torch.device("cpu")


def test_one_gpu_for_several_processes_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with pytest.raises(ConfigError, match=r"device: cuda:1 would be shared by 2 processes; set device: cuda"):
        choose_device("cuda:1", local_rank=0, local_size=2)
    assert not torch.backends.cudnn.benchmark
    assert choose_device("cuda:1", local_rank=0, local_size=1) == torch.device("cuda:1")
    assert [choose_device("cuda", rank, 2).index for rank in (0, 1)] == [0, 1]
    assert current == [1, 0, 1]  # each process's GPU becomes PyTorch's default
    with pytest.raises(ConfigError, match="cuda:2: PyTorch finds 2 GPUs"):
        choose_device("auto", 2, 3)
    assert torch.backends.cudnn.benchmark


def test_device_and_precision(monkeypatch):
    assert choose_device("cpu") == CPU
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    assert choose_precision("auto", CPU) in (torch.bfloat16, torch.float32)
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        choose_precision("float16", CPU)
    with monkeypatch.context() as patch:
        patch.setattr(device, "has_fast_bfloat16", lambda _: True)
        assert choose_precision("auto", CPU) == torch.bfloat16
        assert choose_precision("auto", CPU, trains_separable=True) == torch.float32
        assert choose_precision("bfloat16", CPU, trains_separable=True) == torch.bfloat16  # as the user says
        assert choose_precision("auto", torch.device("cuda:0"), trains_separable=True) == torch.bfloat16
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(ConfigError, match="finds no GPU"):
            choose_device("cuda")


@pytest.mark.parametrize("capability", ["AVX2", "AVX512", "DEFAULT", "SVE256"])
def test_memory_format_for_training(capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    devices = [torch.device(name) for name in ("cpu", "cuda:0", "mps")]
    cases = list(product(devices, (torch.float32, torch.bfloat16), (0.25, 0.5, 1.0)))
    contiguous = [case for case in cases if choose_training_format(*case) == torch.contiguous_format]
    others = [case for case in cases if choose_training_format(*case) == torch.channels_last]
    # On Apple GPUs, batch normalisation in channels_last is reported to be wrong.
    apple = [case for case in cases if case[0].type == "mps"]
    assert contiguous == [*([(CPU, torch.float32, 0.5), (CPU, torch.float32, 1.0)] if capability == "AVX2" else []), *apple]
    assert all(choose_training_format(*case, separable=True) == torch.channels_last for case in cases if case not in apple)
    assert len(contiguous) + len(others) == len(cases)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "", "cpu\n"])
def test_unknown_device_is_rejected_with_one_line(name, monkeypatch):
    """Even with a GPU; PyTorch itself would raise an error that looks like a fault of the program."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="device: expected auto, cpu, cuda, cuda:1 or mps, got"):
        choose_device(name)


def test_device_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU number {device.index}")
    assert device_name(torch.device("cuda", 1)) == "GPU number 1"
    assert device_name(torch.device("cpu")) == f"CPU, {torch.get_num_threads()} threads"
    assert device_name(torch.device("mps")) == "mps"
