"""Steps of a run are the same again: with several threads too, where the other tests have one."""

import pytest
import torch

from ssd.batch import Batch, pad_targets
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET
from ssd.system.distributed import World
from ssd.training.optimizer import make_optimizer
from ssd.training.step import TrainStep, Updater
from tests.ssd.training.test_update import SCHEDULE


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
    targets = pad_targets(
        [torch.tensor([[0.1, 0.1, 0.6, 0.7, 0]]), torch.tensor([[0.3, 0.2, 0.9, 0.5, 1], [0.1, 0.6, 0.3, 0.9, 2]])]
    )
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        model = SSD300(4, width=0.05, batch_norm="backbone")
        updater = Updater(model, make_optimizer(model, "adamw", 1e-3, 0.9, 0.01), SCHEDULE, torch.float32)
        step = TrainStep(model, MultiBoxLoss(), IMAGENET, updater, torch.float32, World(), False)
        for iteration in range(2):
            step([Batch(images, targets, torch.arange(2))], iteration)
        trained.append(model.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())
