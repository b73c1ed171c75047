"""Training and detection on a GPU of Apple's that is made up: what those lack or do wrong is forbidden.

As in `test_step_no_wait`, tensors have shapes and devices and no content; the device calls itself cuda, since this PyTorch need
not know of Apple's.
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssd import preprocessing as preprocessing
from ssd.batch import Batch
from ssd.detect import detect
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET, normalize
from ssd.system import device
from ssd.system.distributed import World
from ssd.training.optimizer import ModelEMA, make_optimizer
from ssd.training.step import TrainStep, Updater
from tests.helpers.batches import targets_of
from tests.helpers.runs import schedule_of

STAND_IN = torch.device("cuda")
ON_PLANES = ("convolution", "batch_norm")  # operations that follow the memory format of their input


class Forbidden(TorchDispatchMode):
    """Refuses float64, fused optimisers, and layers in channels_last, on the device alone."""

    def __init__(self) -> None:
        super().__init__()
        self.last: set[str] = set()  # devices of what the last operation took

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.last = {each.device.type for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        tensors = [tensor for tensor in tensors if tensor.device.type == "cuda"]
        name = str(func)
        assert not any(tensor.dtype == torch.float64 for tensor in tensors), f"{name} in float64"
        assert not tensors or "fused" not in name, name
        if any(layer in name for layer in ON_PLANES):
            assert all(tensor.is_contiguous() for tensor in tensors), f"{name} in channels_last"
        return result


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setattr("ssd.match.NO_FLOAT64", {"cuda"})
    monkeypatch.setattr("ssd.detect.NO_FLOAT64", {"cuda"})
    monkeypatch.setattr(device, "APPLE", {"cuda"})
    monkeypatch.setattr(preprocessing, "_constants", cache(preprocessing._constants.__wrapped__))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_step_takes_nothing_that_apple_s_gpus_lack(monkeypatch, kind):
    def backward(loss: torch.Tensor) -> None:
        """Autograd starts a thread for a device, and there is none; the gradients are there all the same."""
        assert loss.device.type == "cuda"
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda _: False)  # whether the update is left out
    monkeypatch.setattr(torch.Tensor, "item", lambda _: 1.0)  # the number of AdamW's step, which is on the host
    with FakeTensorMode():
        with STAND_IN:
            model = SSD300(4, batch_norm="all", width=0.05)
        optimizer = make_optimizer(model, kind, 0.1, 0.9, 0.01)
        updater = Updater(model, optimizer, schedule_of(), torch.float32, ModelEMA(model, 0.9), 10.0)
        step = TrainStep(model, MultiBoxLoss(), IMAGENET, updater, torch.float32, World(), False)
        images = torch.empty(2, 300, 300, 3, dtype=torch.uint8)
        with Forbidden():
            step([Batch(images, targets_of(2, 1, 2, "cpu"), torch.empty(2, dtype=torch.int64))], 0)


def test_detection_takes_nothing_that_apple_s_gpus_lack():
    with FakeTensorMode(), torch.no_grad():
        with STAND_IN:
            model = SSD300(4, batch_norm="all", width=0.05).eval()
        images = torch.empty(2, 300, 300, 3, dtype=torch.uint8)
        with Forbidden():
            loc, conf, dbox_list = model(normalize(images, IMAGENET, STAND_IN, device.inference_format(STAND_IN)))
        with Forbidden() as forbidden, pytest.raises(DataDependentOutputException):  # how many boxes are there?
            detect(loc, conf, dbox_list)
    assert forbidden.last == {"cpu"}  # which has float64
