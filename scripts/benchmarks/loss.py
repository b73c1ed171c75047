"""Benchmark of matching, mining and both losses."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from scripts.benchmarks import networks
from scripts.benchmarks.measuring import OURS, PEER, Row, Runs, Setting, measure, real_batch, rows
from scripts.benchmarks.networks import torchvision_loss, torchvision_network, torchvision_targets
from ssd.architecture import SSD300_VGG16
from ssd.boxes import to_corners
from ssd.dbox import make_dbox_list
from ssd.loss import MultiBoxLoss
from ssd.match import match_batch


def bench_loss(setting: Setting, batch_size: int) -> list[Row]:
    """Measure matching, mining and both losses, forward and backward. Floor: one cross entropy over all DBoxes."""
    device = setting.device
    batch = real_batch(setting.photos, batch_size)
    dbox_list = make_dbox_list().to(device)
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(batch_size, len(dbox_list), 4, generator=generator).to(device).requires_grad_()
    conf = torch.randn(batch_size, len(dbox_list), networks.NUM_CLASSES + 1, generator=generator).to(device).requires_grad_()
    criterion = MultiBoxLoss()
    targets = batch.targets.to(device)
    labels = match_batch(targets, dbox_list).conf.flatten()
    peer = torchvision_network()
    peer_targets = torchvision_targets(batch, device)
    anchors = [to_corners(dbox_list) * SSD300_VGG16.input_size] * batch_size

    def ours() -> None:
        loss_l, loss_c = criterion((loc, conf, dbox_list), targets)
        (loss_l + loss_c).backward()

    def torchvision() -> None:
        losses = torchvision_loss(peer, {"bbox_regression": loc, "cls_logits": conf}, peer_targets, anchors)
        torch.stack(list(losses.values())).sum().backward()

    def floor() -> None:
        F.cross_entropy(conf.flatten(0, 1), labels).backward()

    def clean(run: Callable[[], None]) -> Callable[[], None]:
        def run_and_clean() -> None:
            run()
            loc.grad = conf.grad = None

        return run_and_clean

    runs: Runs = {"floor: one cross entropy": clean(floor), OURS: clean(ours), PEER: clean(torchvision)}
    return rows(f"loss, batch {batch_size}", batch_size, "images/s", measure(runs, setting, 4 * setting.rounds))
