"""ResNet-50 (He et al., CVPR 2016, arXiv 1512.03385) as NVIDIA's SSD300 uses it: up to conv4_x, which keeps the resolution."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ssd.architecture import PYTORCH_NORM, Conv, NormConstants
from ssd.backbones.backbone import Backbone, WeightsError
from ssd.backbones.conv_block import ConvBlock
from ssd.preprocessing import IMAGENET, Preprocessing

EXPANSION = 4  # channels at the end of a block, relative to its inner ones (paper, figure 5)
# Paper, table 1: name, blocks, inner channels, stride. For ImageNet, layer3 (conv4_x) has a stride of 2.
STAGES = (("layer1", 3, 64, 1), ("layer2", 4, 128, 2), ("layer3", 6, 256, 1))
# Patterns of names here, and torchvision's names.
TORCHVISION_NAMES = (
    (r"\bconv(\d)\.conv\.", r"conv\1."),
    (r"\bconv(\d)\.norm\.", r"bn\1."),
    (r"\bdownsample\.conv\.", "downsample.0."),
    (r"\bdownsample\.norm\.", "downsample.1."),
)


class Bottleneck(nn.Module):
    """A block of three convolutions and a shortcut. As in torchvision, the 3 × 3 convolution has the stride."""

    def __init__(
        self, inputs: int, channels: int, stride: int, is_first: bool, width: float, norm_constants: NormConstants
    ) -> None:
        super().__init__()
        layers = (
            Conv("conv1", channels, kernel=1, padding=0),
            Conv("conv2", channels, stride=stride),
            Conv("conv3", EXPANSION * channels, kernel=1, padding=0),
        )
        if is_first:
            shortcut = layers[-1]._replace(stride=stride).at_width(width)
            self.downsample = ConvBlock(inputs, shortcut, True, norm_constants)
        else:
            self.downsample = nn.Identity()
        for layer in layers:
            layer = layer.at_width(width)
            self.add_module(layer.name, ConvBlock(inputs, layer, True, norm_constants))
            inputs = layer.channels
        self.out_channels = inputs
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.get_submodule("conv1")(x))
        out = self.relu(self.get_submodule("conv2")(out))
        return self.relu(self.get_submodule("conv3")(out) + self.downsample(x))


class ResNet50(Backbone):
    """The backbone: images to the map of layer3 (stride 8).

    Args:
        batch_norm: `backbone` or `all`; there is no ResNet without batch normalisation.
        width: factor on the number of channels of every layer.
        norm_constants: of batch normalisation.
    """

    layer_names = ("conv1", *(name for name, *_ in STAGES))

    def __init__(self, batch_norm: str = "backbone", width: float = 1.0, norm_constants: NormConstants = PYTORCH_NORM) -> None:
        super().__init__()
        self.has_batch_norm = True
        stem = Conv("conv1", 64, kernel=7, stride=2, padding=3).at_width(width)
        self.conv1 = ConvBlock(3, stem, True, norm_constants)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = stem.channels
        for name, num_blocks, channels, stride in STAGES:
            stage = nn.Sequential()
            for number in range(num_blocks):
                is_first = number == 0
                block = Bottleneck(inputs, channels, stride if is_first else 1, is_first, width, norm_constants)
                stage.append(block)
                inputs = block.out_channels
            self.add_module(name, stage)
        self.out_channels = (inputs,)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the map of layer3 `[B, 1024, 38, 38]` (at width 1) for images `[B, 3, 300, 300]`."""
        x = self.pool(self.relu(self.conv1(images)))  # [B, 64, 75, 75]
        for name, *_ in STAGES:
            x = self.get_submodule(name)(x)
        return (x,)

    def convert(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Preprocessing]:
        """Convert torchvision's ResNet-50, without its layer4 and classifier."""
        converted: dict[str, Tensor] = {}
        for name in self.state_dict():
            theirs = name
            for pattern, replacement in TORCHVISION_NAMES:
                theirs = re.sub(pattern, replacement, theirs)
            if theirs in state:
                converted[name] = state[theirs]
            elif not name.endswith("num_batches_tracked"):
                raise WeightsError(f"is not torchvision's ResNet-50: {theirs} is missing")
        return converted, IMAGENET
