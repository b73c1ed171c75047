"""Backbones: images to the first feature maps. A file a backbone, one interface (`Backbone`)."""

from collections.abc import Callable
from functools import partial

from ssd.architecture import Architecture
from ssd.backbones.backbone import Backbone
from ssd.backbones.mobilenet import MobileNetV3Large
from ssd.backbones.vgg import VGG16

# By the name in `Architecture.backbone`.
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "vgg16": VGG16,
    "mobilenet_v3_large": MobileNetV3Large,
    "mobilenet_v3_large_reduced": partial(MobileNetV3Large, reduced_tail=True),
}


def build_backbone(architecture: Architecture, batch_norm: str, width: float) -> Backbone:
    """Return the backbone of an architecture with random weights.

    Raises:
        ValueError: the backbone has no such `batch_norm`.
    """
    return BACKBONES[architecture.backbone](batch_norm, width, architecture.norm_constants)
