"""The two networks that are compared, as they are built, and what torchvision's takes."""

import torch
from torch import Tensor
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from ssd.batch import Batch
from ssd.model import SSD300

NUM_CLASSES = 20


def our_network() -> SSD300:
    return SSD300(NUM_CLASSES + 1)


def torchvision_network() -> SSD:
    return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)


def torchvision_targets(batch: Batch, device: torch.device) -> list[dict[str, Tensor]]:
    """Targets as torchvision's SSD takes them: pixels, labels from 1."""
    return [
        {"boxes": (boxes[labels >= 0] * 300).to(device), "labels": (labels[labels >= 0] + 1).to(device)}
        for boxes, labels in zip(batch.targets.boxes, batch.targets.labels, strict=True)
    ]


def torchvision_loss(
    model: SSD, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], anchors: list[Tensor]
) -> dict[str, Tensor]:
    """What torchvision's SSD does in training once it has its head's outputs."""
    matched = [
        model.proposal_matcher(box_iou(target["boxes"], of_image))
        if len(target["boxes"])
        else torch.full((len(of_image),), -1, dtype=torch.int64, device=of_image.device)
        for target, of_image in zip(targets, anchors, strict=True)
    ]
    return model.compute_loss(targets, outputs, anchors, matched)
