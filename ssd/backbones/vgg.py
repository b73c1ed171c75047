"""VGG16 as SSD uses it: without its classifier, with fc6 and fc7 as convolutions (SSD paper, section 3; ParseNet; DeepLab)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssd.architecture import PYTORCH_NORM, Conv, NormConstants
from ssd.backbones.backbone import Backbone, WeightsError
from ssd.backbones.conv_block import ConvBlock
from ssd.preprocessing import CAFFE, IMAGENET, OXFORD, Preprocessing

# Convolutions in stages, with pooling between the stages.
STAGES = (
    (Conv("conv1_1", 64), Conv("conv1_2", 64)),
    (Conv("conv2_1", 128), Conv("conv2_2", 128)),
    (Conv("conv3_1", 256), Conv("conv3_2", 256), Conv("conv3_3", 256)),
    (Conv("conv4_1", 512), Conv("conv4_2", 512), Conv("conv4_3", 512)),
    (Conv("conv5_1", 512), Conv("conv5_2", 512), Conv("conv5_3", 512)),
    (Conv("fc6", 1024, padding=6, dilation=6), Conv("fc7", 1024, kernel=1, padding=0)),
)
LAYER_NAMES = tuple(layer.name for stage in STAGES for layer in stage)  # from the image to fc7
CONV_NAMES = LAYER_NAMES[:-2]  # the 13 convolutions of VGG16 itself
# Positions of the 13 convolutions, fc6 and fc7 in the layer list of ports of Caffe's reduced-fc VGG16.
REDUCED_POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)
# Positions of the 13 convolutions in torchvision's `features`, without and with batch normalisation.
CONV_POSITIONS = REDUCED_POSITIONS[:13]
BN_CONV_POSITIONS = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
TORCHVISION_BIASES = (0.4034, 0.3778, 0.4644)  # first biases of VGG16_Weights.IMAGENET1K_V1


class VGG16(Backbone):
    """The backbone: images to the feature maps of conv4_3 (stride 8) and fc7 (stride 16).

    Args:
        batch_norm: `none`, or `backbone` or `all` for batch normalisation after each convolution.
        width: factor on the number of channels of every layer.
        norm_constants: of batch normalisation.
    """

    layer_names = LAYER_NAMES

    def __init__(self, batch_norm: str = "none", width: float = 1.0, norm_constants: NormConstants = PYTORCH_NORM) -> None:
        super().__init__()
        self.has_batch_norm = batch_norm != "none"
        inputs = 3
        ends: list[int] = []
        for stage in STAGES:
            for layer in stage:
                layer = layer.at_width(width)
                self.add_module(layer.name, ConvBlock(inputs, layer, self.has_batch_norm, norm_constants))
                inputs = layer.channels
            ends.append(inputs)
        self.out_channels = ends[3], ends[5]  # of conv4_3 and fc7
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2, ceil_mode=True)  # of 300 pixels, 75 → 38, not 37
        self.pool5 = nn.MaxPool2d(3, stride=1, padding=1)

    def _stage(self, number: int, x: Tensor) -> Tensor:
        """Apply one stage, without the activation of its last convolution."""
        *first, last = STAGES[number - 1]
        for layer in first:
            x = self.relu(self.get_submodule(layer.name)(x))
        return self.get_submodule(last.name)(x)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of conv4_3 `[B, 512, 38, 38]` and fc7 `[B, 1024, 19, 19]` (at width 1) for images `[B, 3, 300, 300]`.

        ReLU and max-pooling commute. After the pooling, ReLU has a quarter of the values to read and write.
        """
        x = self.relu(self.pool(self._stage(1, images)))  # [B, 64, 150, 150]
        x = self.relu(self.pool(self._stage(2, x)))  # [B, 128, 75, 75]
        x = self.relu(self.pool3(self._stage(3, x)))  # [B, 256, 38, 38]
        conv4_3 = self.relu(self._stage(4, x))
        x = self.pool(conv4_3)  # [B, 512, 19, 19]
        x = self.relu(self.pool5(self._stage(5, x)))
        return conv4_3, self.relu(self._stage(6, x))

    def convert(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Preprocessing]:
        """Convert torchvision's VGG16, its 13 convolutions alone, or the reduced-fc VGG16 from which the ports of SSD start."""
        if is_features(state):
            return from_features(state), preprocessing_of_features(state)
        if "features.0.weight" in state:
            return from_torchvision(state, self.has_batch_norm), IMAGENET
        if "0.weight" in state and not self.has_batch_norm:
            return from_reduced_fc(state), CAFFE
        kinds = "torchvision's VGG16 with batch normalisation" if self.has_batch_norm else "torchvision's or a reduced-fc VGG16"
        raise WeightsError(f"is not {kinds} (its first entry: {next(iter(state), None)})")


def is_features(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has VGG16's 13 convolutions in torchvision's layout, and no classifier or one of NaN, like
    `VGG16_Weights.IMAGENET1K_FEATURES`."""
    if f"features.{CONV_POSITIONS[-1]}.weight" not in state:
        return False
    classifier = [value for name, value in state.items() if name.startswith("classifier.")]
    return not classifier or any(bool(value.isnan().any()) for value in classifier)


def preprocessing_of_features(state: Mapping[str, Tensor]) -> Preprocessing:
    """Return the preprocessing for VGG16's convolutions: torchvision's if the first biases are those of its own training,
    else Oxford's, without a scale."""
    first = state["features.0.bias"][:3].float()
    is_torchvision = torch.allclose(first, torch.tensor(TORCHVISION_BIASES), atol=1e-3)
    return IMAGENET if is_torchvision else OXFORD


def from_features(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the 13 convolutions from torchvision's layout to weights of the backbone, in float32."""
    converted: dict[str, Tensor] = {}
    for name, position in zip(CONV_NAMES, CONV_POSITIONS, strict=True):
        for entry in ("weight", "bias"):
            if (value := state.get(f"features.{position}.{entry}")) is None:
                raise WeightsError(f"features.{position}.{entry} ({name}) is missing")
            converted[f"{name}.conv.{entry}"] = value.float()
    return converted


def from_torchvision(state: Mapping[str, Tensor], batch_norm: bool) -> dict[str, Tensor]:
    """Convert torchvision's VGG16 to weights of the backbone; decimate its classifier to fc6 and fc7 (DeepLab, ParseNet).

    fc6 keeps every fourth output and every third row and column of its 7 × 7 window, fc7 every fourth input and output.
    """
    positions = BN_CONV_POSITIONS if batch_norm else CONV_POSITIONS
    converted: dict[str, Tensor] = {}
    try:
        for name, position in zip(CONV_NAMES, positions, strict=True):
            bias = state[f"features.{position}.bias"]
            converted[f"{name}.conv.weight"] = state[f"features.{position}.weight"]
            if batch_norm:
                norm = f"features.{position + 1}"
                for entry in ("weight", "bias", "running_var"):
                    converted[f"{name}.norm.{entry}"] = state[f"{norm}.{entry}"]
                # Our convolutions have no bias before a norm; subtract it from the running mean instead.
                converted[f"{name}.norm.running_mean"] = state[f"{norm}.running_mean"] - bias
            else:
                converted[f"{name}.conv.bias"] = bias
        fc6 = state["classifier.0.weight"].view(4096, 512, 7, 7)
        fc7 = state["classifier.3.weight"].view(4096, 4096, 1, 1)
        converted["fc6.conv.weight"] = fc6[::4, :, ::3, ::3]
        converted["fc7.conv.weight"] = fc7[::4, ::4]
        if not batch_norm:
            converted["fc6.conv.bias"] = state["classifier.0.bias"][::4]
            converted["fc7.conv.bias"] = state["classifier.3.bias"][::4]
    except (KeyError, IndexError, RuntimeError) as error:
        raise WeightsError(f"is not a complete VGG16 of torchvision ({error})") from None
    return converted


def from_reduced_fc(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a reduced-fc VGG16 (`0.weight`, ...), as used by amdegroot, lufficc and qfgaohao, to weights of the backbone."""
    converted: dict[str, Tensor] = {}
    for name, position in zip(LAYER_NAMES, REDUCED_POSITIONS, strict=True):
        for entry in ("weight", "bias"):
            if f"{position}.{entry}" not in state:
                raise WeightsError(f"{position}.{entry} ({name}) is missing")
            converted[f"{name}.conv.{entry}"] = state[f"{position}.{entry}"]
    return converted
