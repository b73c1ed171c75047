"""What only a GPU can show; skipped without one."""

import pytest
import torch

from data.loading.dataset import DetectionDataset
from ssd.batch import pad_targets
from ssd.config import load_config
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.system.distributed import World
from ssd.system.memory import fewest_steps
from ssd.system.stop import StopRequest
from ssd.training.build import build_model, build_step
from ssd.training.datasets import load_data
from ssd.training.run import Run
from ssd.training.schedule import Schedule
from tests.helpers.batches import random_targets
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


def test_the_loss_is_that_of_the_cpu_and_asks_the_device_nothing():
    torch.manual_seed(0)
    model = SSD300(21, width=0.25)
    images = torch.randn(4, 3, 300, 300)
    targets = pad_targets(random_targets([3, 0, 12, 1]))
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


def test_a_whole_step_asks_the_device_nothing(tmp_path, shapes_root):
    overrides = [f"data.root={shapes_root}", "train.ema=0.99", "train.clip_grad_norm=10", "train.accumulate=2"]
    config = load_config(ROOT / "configs/quickstart.yaml", overrides)
    run = Run(config, World(), torch.device("cuda"), torch.bfloat16, tmp_path, StopRequest())
    photos = load_data(run).train
    model, preprocessing = build_model(run, None)
    step = build_step(run, model, preprocessing, Schedule(run.config.train, run.config.eval.every, len(photos)))
    samples = DetectionDataset(photos, 300, preprocessing.fill)
    batches = [samples.__getitems__([(0, i), (0, i + 1)]) for i in (0, 2)]
    batches = [
        batch._replace(images=batch.images.pin_memory(), targets=type(batch.targets)(*(t.pin_memory() for t in batch.targets)))
        for batch in batches
    ]
    step(batches, 0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken = step(batches, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert taken.losses.isfinite().all()
    assert step.updater.non_finite_at == 0


def test_the_batch_that_the_memory_holds():
    _, total = torch.cuda.mem_get_info()

    def step(count: int) -> None:
        torch.empty(count * total // 8, dtype=torch.uint8, device="cuda")

    assert fewest_steps(step, 16, torch.device("cuda:0")) == 4  # 16 and 8 run out of memory, 4 take half of it
    assert fewest_steps(lambda count: step(16 * count), 2, torch.device("cuda:0")) is None
