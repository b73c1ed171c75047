"""Backbones: images to the first feature maps. A file a backbone, one interface (`Backbone`)."""

from collections.abc import Callable
from functools import partial

from ssd.architecture import Architecture
from ssd.backbones.backbone import Backbone
from ssd.backbones.mobilenet import MobileNetV3Large
from ssd.backbones.resnet import ResNet50
from ssd.backbones.vgg import VGG16

# By the name in `Architecture.backbone`.
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "vgg16": VGG16,
    "resnet50": ResNet50,
    "mobilenet_v3_large": MobileNetV3Large,
    "mobilenet_v3_large_reduced": partial(MobileNetV3Large, reduced_tail=True),
}


def build_backbone(architecture: Architecture, batch_norm: str, width: float) -> Backbone:
    """Return the backbone of an architecture with random weights.

    Raises:
        ValueError: the architecture has no such `batch_norm` or `width`.
    """
    if batch_norm not in architecture.batch_norms:
        raise ValueError(f"batch_norm: expected {' or '.join(architecture.batch_norms)}, got {batch_norm!r}")
    if width != 1 and not architecture.scalable:
        raise ValueError(f"width: expected 1.0 for {architecture.title}, got {width}")
    return BACKBONES[architecture.backbone](batch_norm, width, architecture.norm_constants)
