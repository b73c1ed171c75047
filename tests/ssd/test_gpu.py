"""What only a GPU can show; skipped without one."""

import pytest
import torch

from ssd.batch import pad_targets
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from tests.ssd.test_loss import batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


def test_the_loss_is_that_of_the_cpu_and_asks_the_device_nothing():
    torch.manual_seed(0)
    model = SSD300(21, width=0.25)
    images = torch.randn(4, 3, 300, 300)
    targets = pad_targets(batch([3, 0, 12, 1]))
    criterion = MultiBoxLoss()
    expected = criterion(model(images), targets)
    model.cuda()
    on_device, moved = images.cuda(), targets.to(torch.device("cuda"))
    criterion(model(on_device), moved)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_l, loss_c = criterion(model(on_device), moved)
        (loss_l + loss_c).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss_l.cpu(), expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loss_c.cpu(), expected[1], rtol=1e-3, atol=1e-3)
