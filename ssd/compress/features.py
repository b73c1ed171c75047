"""Initialise a narrower network, or one with batch normalisation, from the convolutions of VGG16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssd.backbones.vgg import CONV_NAMES, is_features
from ssd.compress.prune import LayerFit, parts_of, prune
from ssd.model import SSD
from ssd.preprocessing import Preprocessing, normalize
from ssd.weights.checkpoint import CheckpointError, is_own
from ssd.weights.formats import project_of, weights_in
from ssd.weights.pretrained import load_backbone

LAST = "backbone.conv5_3"
NUM_CONVS = 13
SCALE = 1 / 58  # for pixels, with batch normalisation; 58 is about the standard deviation of photos


def features_in(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict in the content of a file if it holds VGG16's convolutions and no classifier; else None."""
    weights = weights_in(content)
    return weights if not is_own(content) and not project_of(weights) and is_features(weights) else None


def start_from_features(
    model: SSD,
    features: dict[str, Tensor],
    pixels: Tensor,
    source: str,
    watch: Callable[[LayerFit], object] = lambda fit: None,
) -> Preprocessing:
    """Prune VGG16's 13 convolutions into the backbone of a network. All layers from fc6 on are unchanged.

    Args:
        model: network of width 1 or less, on the CPU; changed in place.
        features: state dict of the convolutions.
        pixels: photos similar to the training photos, `[N, S, S, 3]` uint8 RGB.
        source: name of the weights in messages.
        watch: receives the fit of each layer.

    Returns:
        The preprocessing that the network expects. With batch normalisation it scales pixels to about unit variance.

    Raises:
        CheckpointError: the weights do not fit, or the network is wider than VGG16.
    """
    if model.width > 1:
        raise CheckpointError(f"model.pretrained: {source}: has no channels for model.width {model.width:g}; set 1.0 or less")
    wide = SSD(2, architecture=model.architecture)
    preprocessing, _ = load_backbone(wide, features, source)
    for fit in prune(wide, model, normalize(pixels, preprocessing, memory_format=torch.contiguous_format), LAST):
        watch(fit)
    if not model.backbone.has_batch_norm:
        return preprocessing
    to_unit_scale(model)
    if preprocessing.scale == (1.0, 1.0, 1.0):
        with torch.no_grad():
            parts_of(model, "backbone.conv1_1")[0].weight.div_(SCALE)
        preprocessing = preprocessing._replace(scale=(SCALE,) * 3)
    return preprocessing


@torch.no_grad()
def to_unit_scale(model: SSD) -> None:
    """Scale the outputs of the 13 convolutions to unit variance, and the weights of each next layer to compensate.

    VGG16's activations reach hundreds; learning rates for normalised networks would hardly change its weights.
    """
    names = [f"backbone.{name}" for name in CONV_NAMES]
    for name, reader in zip(names, [*names[1:], None], strict=True):
        _, norm = parts_of(model, name)
        assert norm is not None
        factor = norm.weight.clone()
        norm.weight.fill_(1.0)
        norm.bias.div_(factor)
        if reader:
            parts_of(model, reader)[0].weight.mul_(factor[:, None, None])
