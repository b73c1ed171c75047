"""A training step on a GPU that is made up: nothing in it may make the host wait for the device.

Tensors have shapes and devices and no content, so what needs a content fails by itself: `.item()`, a mask as an index, `if`.
What is left to look for are copies between host and device. `tests/ssd/test_gpu.py` asks a real one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssd import preprocessing as preprocessing
from ssd.batch import Batch
from ssd.loss import MultiBoxLoss
from ssd.match import ROUNDS_UNASKED, match_batch
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET
from ssd.system.distributed import World
from ssd.training.optimizer import ModelEMA, make_optimizer
from ssd.training.step import TrainStep, Updater
from tests.helpers.batches import targets_of
from tests.helpers.runs import schedule_of

CUDA = torch.device("cuda")


class Copies(TorchDispatchMode):
    """Which operations had tensors on the host and on the device, of those for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0
        self.largest = 0  # number of elements of a tensor
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # This one has no version for tensors without content. It changes its arguments and returns nothing.
        result = None if func is torch.ops.aten._fused_sgd_.default else func(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        self.num_operations += 1
        self.largest = max(self.largest, *(tensor.numel() for tensor in tensors), 0)
        if len({tensor.device.type for tensor in tensors}) > 1 and not kwargs.get("non_blocking"):
            self.waited.append(str(func))
        return result


@contextmanager
def made_up_gpu() -> Iterator[Copies]:
    with FakeTensorMode(), Copies() as copies:
        yield copies


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("min_neg", [0, 20])
def test_a_step_copies_nothing_but_its_batch(monkeypatch, kind, min_neg):
    def backward(loss: torch.Tensor) -> None:
        """Autograd starts a thread for a device, and there is none; the gradients are there all the same."""
        assert loss.device.type == "cuda"
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(preprocessing, "_constants", cache(preprocessing._constants.__wrapped__))
    with made_up_gpu() as copies:
        with CUDA:
            model = SSD300(4, batch_norm="backbone", width=0.05)
        optimizer = make_optimizer(model, kind, 0.1, 0.9, 0.01)
        updater = Updater(model, optimizer, schedule_of(), torch.bfloat16, ModelEMA(model, 0.9), 10.0)
        step = TrainStep(model, MultiBoxLoss(min_neg=min_neg), IMAGENET, updater, torch.bfloat16, World(), False)
        images, indices = torch.empty(2, 300, 300, 3, dtype=torch.uint8), torch.empty(2, dtype=torch.int64)
        micro_batches = [Batch(images, targets_of(2, count, 2 * count, "cpu"), indices) for count in (0, 5)]
        step(micro_batches, 0)
        copies.waited.clear()  # building the network, and the mean and scale of its input, which are sent once
        before = copies.num_operations
        step(micro_batches, 1)
    assert copies.num_operations - before > 500
    assert copies.waited == []


@pytest.mark.parametrize("num_slots", [1, ROUNDS_UNASKED])
def test_matching_asks_nothing(num_slots):
    with made_up_gpu() as copies:
        match_batch(targets_of(3, num_slots, num_slots + 1, "cuda"), torch.empty(8732, 4, device="cuda"))
    assert copies.waited == []


def test_a_crowd_is_asked_whether_it_is_settled():
    with made_up_gpu(), pytest.raises(DataDependentOutputException):
        match_batch(targets_of(3, ROUNDS_UNASKED + 1, 90, "cuda"), torch.empty(8732, 4, device="cuda"))


def test_a_crowd_is_matched_in_parts():
    """The whole table of 8,000 objects would be eight times as large, and there would be several of them."""
    with made_up_gpu() as copies, pytest.raises(DataDependentOutputException):
        match_batch(targets_of(8, 1000, 8000, "cuda"), torch.empty(8732, 4, device="cuda"))
    assert copies.largest < 10_000_000  # 80 MB


@pytest.mark.parametrize("waits", [lambda x: x[x > 0], lambda x: x.max().item(), lambda x: bool((x > 0).any())])
def test_what_needs_a_content_fails(waits):
    with made_up_gpu(), pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        waits(torch.empty(3, device="cuda"))


def _assign(x: torch.Tensor) -> None:
    x[torch.empty(2, dtype=torch.int64, device="cuda")] = 2.0


@pytest.mark.parametrize("waits", [_assign, lambda x: x + torch.tensor([1.0]).cuda(), lambda x: x.cpu()])
def test_copies_are_seen(waits):
    with made_up_gpu() as copies:
        waits(torch.empty(3, device="cuda"))
    assert copies.waited
