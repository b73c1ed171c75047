"""The training step: its losses and gradient by hand, and its equality bit for bit with several threads."""

from copy import deepcopy

import pytest
import torch

from ssd.batch import Batch, pad_targets
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET, normalize
from ssd.system.distributed import World
from ssd.training.optimizer import make_optimizer
from ssd.training.step import TrainStep, Updater
from tests.helpers.runs import schedule_of


@pytest.fixture
def _two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_two_threads")
def test_steps_with_several_threads_are_equal_bit_for_bit():
    photos = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 300, 300, 3), dtype=torch.uint8, generator=photos)
    rows = ([[0.1, 0.1, 0.6, 0.7, 0]], [[0.3, 0.2, 0.9, 0.5, 1], [0.1, 0.6, 0.3, 0.9, 2]])
    targets = pad_targets([torch.tensor(each) for each in rows])
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        model = SSD300(4, width=0.05, batch_norm="backbone")
        updater = Updater(model, make_optimizer(model, "adamw", 1e-3, 0.9, 0.01), schedule_of(), torch.float32)
        step = TrainStep(model, MultiBoxLoss(), IMAGENET, updater, torch.float32, World(), False)
        for iteration in range(2):
            step([Batch(images, targets, torch.arange(2))], iteration)
        trained.append(model.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_a_step_tells_the_norm_for_the_whole_batch(clip):
    """Two micro-batches with different numbers of positives: the gradient is that of all photos at once."""
    torch.manual_seed(0)
    model = SSD300(4, width=0.05)
    plain = deepcopy(model)
    images = torch.randint(0, 256, (2, 300, 300, 3), dtype=torch.uint8)
    targets = [torch.tensor([[0.1, 0.1, 0.6, 0.7, 0]]), torch.tensor([[0.3, 0.2, 0.9, 0.5, 1], [0.1, 0.6, 0.3, 0.9, 2]])]
    updater = Updater(model, make_optimizer(model, "sgd", 0.1, 0.9, 0.01), schedule_of(), torch.float32, clip_grad_norm=clip)
    step = TrainStep(model, MultiBoxLoss(), IMAGENET, updater, torch.float32, World(), False)
    batches = [Batch(images[i : i + 1], pad_targets([targets[i]]), torch.tensor([i])) for i in range(2)]
    taken = step(batches, 0)
    losses = MultiBoxLoss()(plain.train()(normalize(images, IMAGENET)), targets)
    sum(losses).backward()  # pyright: ignore[reportAttributeAccessIssue]
    squares = sum(float((parameter.grad.double() ** 2).sum()) for parameter in plain.parameters() if parameter.grad is not None)
    assert taken.grad_norm.item() == pytest.approx(squares**0.5, rel=1e-4)
    assert taken.losses.tolist() == pytest.approx([loss.item() for loss in losses], rel=1e-5)
