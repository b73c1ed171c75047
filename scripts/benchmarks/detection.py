"""Benchmark of decoding, thresholds and NMS."""

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.benchmarks import networks
from scripts.benchmarks.measuring import OURS, PEER, Row, Setting, measure, real_batch, rows
from scripts.benchmarks.networks import torchvision_network
from ssd.architecture import SSD300_VGG16
from ssd.boxes import to_corners
from ssd.dbox import make_dbox_list
from ssd.detect import detect
from ssd.match import match_batch

SIZE = SSD300_VGG16.input_size


def bench_detect(setting: Setting, batch_size: int) -> list[Row]:
    """Measure decoding, thresholds and NMS early in training, when nearly every box passes, and with a trained network."""
    device = setting.device
    batch = real_batch(setting.photos, batch_size)
    dbox_list = make_dbox_list().to(device)
    peer = torchvision_network().eval()
    anchors, shapes = [to_corners(dbox_list) * SIZE] * batch_size, [(SIZE, SIZE)] * batch_size
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(batch_size, len(dbox_list), 4, generator=generator).to(device)
    noise = torch.randn(batch_size, len(dbox_list), networks.NUM_CLASSES + 1, generator=generator).to(device)
    # A trained network is confident about most of the background, and finds each object at several DBoxes.
    matched = match_batch(batch.targets.to(device), dbox_list)
    trained = noise + 8 * F.one_hot(matched.conf, networks.NUM_CLASSES + 1)
    result = []
    for state, offsets, conf in (("early", loc, 0.3 * noise), ("trained", matched.loc + 0.2 * loc, trained)):

        def ours(offsets: Tensor = offsets, conf: Tensor = conf) -> object:
            return detect(offsets, conf, dbox_list)

        def torchvision(offsets: Tensor = offsets, conf: Tensor = conf) -> object:
            with torch.no_grad():
                return peer.postprocess_detections({"bbox_regression": offsets, "cls_logits": conf}, anchors, shapes)

        passing = (conf.softmax(2)[..., 1:] > 0.01).any(2).float().mean().item()
        seconds = measure({OURS: ours, PEER: torchvision}, setting, 4 * setting.rounds)
        case = f"detect, batch {batch_size}, {state} ({passing:.0%} of the DBoxes pass)"
        result += rows(case, batch_size, "images/s", seconds)
    return result
