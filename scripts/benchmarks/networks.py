"""The networks to compare, and the inputs of torchvision's."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd as torchvision_ssd
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.ops import box_iou

from scripts.benchmarks.measuring import PEER
from ssd.architecture import SSD300_VGG16, Architecture
from ssd.batch import Batch
from ssd.model import SSD

NUM_CLASSES = 20


class Variant(NamedTuple):
    """A way to run torchvision's network."""

    dtype: torch.dtype
    memory_format: torch.memory_format

    @property
    def name(self) -> str:
        words = [str(part).removeprefix("torch.").removesuffix("_format") for part in self]
        return f"{PEER}, {', '.join(words)}"

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


def peer_variants(dtype: torch.dtype) -> list[Variant]:
    """Return float32 and `dtype`, each in both memory formats. torchvision's defaults come first."""
    precisions = dict.fromkeys((torch.float32, dtype))
    return [Variant(precision, form) for precision in precisions for form in (torch.contiguous_format, torch.channels_last)]


def our_network(row: Architecture = SSD300_VGG16) -> SSD:
    return SSD(NUM_CLASSES + 1, architecture=row)


def conv_inputs(model: SSD) -> list[tuple[nn.Conv2d, torch.Size]]:
    """Return every convolution of a network, in any precision, and the shape `[C, H, W]` of its input."""
    inputs: list[tuple[nn.Conv2d, torch.Size]] = []
    handles = [
        module.register_forward_pre_hook(lambda conv, args: inputs.append((conv, args[0].shape[1:])))  # pyright: ignore[reportArgumentType]
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    dtype = next(model.parameters()).dtype
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model(torch.zeros(1, 3, model.input_size, model.input_size))
    for handle in handles:
        handle.remove()
    return inputs


def torchvision_network(row: Architecture = SSD300_VGG16) -> torchvision_ssd.SSD:
    """Return torchvision's SSDLite320 for a row with depthwise convolutions, or its SSD300."""
    build = ssdlite320_mobilenet_v3_large if row.separable else ssd300_vgg16
    return build(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)


def torchvision_targets(batch: Batch, device: torch.device) -> list[dict[str, Tensor]]:
    """Convert the targets to those of torchvision's SSD: pixels, labels from 1."""
    size = batch.images.shape[1]
    return [
        {"boxes": (boxes[labels >= 0] * size).to(device), "labels": (labels[labels >= 0] + 1).to(device)}
        for boxes, labels in zip(batch.targets.boxes, batch.targets.labels, strict=True)
    ]


def torchvision_loss(
    model: torchvision_ssd.SSD, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], anchors: list[Tensor]
) -> dict[str, Tensor]:
    """Compute the losses from the head's outputs as torchvision's SSD does in training."""
    matched = [
        model.proposal_matcher(box_iou(target["boxes"], of_image))
        if len(target["boxes"])
        else torch.full((len(of_image),), -1, dtype=torch.int64, device=of_image.device)
        for target, of_image in zip(targets, anchors, strict=True)
    ]
    return model.compute_loss(targets, outputs, anchors, matched)
