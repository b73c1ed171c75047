"""VGG16 as SSD uses it: without its classifier, fc6 and fc7 as convolutions (SSD paper, section 3; ParseNet; DeepLab)."""

from collections.abc import Iterator

from torch import Tensor, nn

CONV4_3_CHANNELS = 512
FC_CHANNELS = 1024
BATCH_NORMS = ("none", "backbone", "all")

# Names and channels of VGG16's convolutions, a row a stage; a 2×2 pooling stands between the stages.
VGG16_STAGES = (
    (("conv1_1", 64), ("conv1_2", 64)),
    (("conv2_1", 128), ("conv2_2", 128)),
    (("conv3_1", 256), ("conv3_2", 256), ("conv3_3", 256)),
    (("conv4_1", 512), ("conv4_2", 512), ("conv4_3", CONV4_3_CHANNELS)),
    (("conv5_1", 512), ("conv5_2", 512), ("conv5_3", 512)),
)


def scaled(channels: int, width: float) -> int:
    """Channels of a slimmer (or wider) network, a multiple of 8, which suits vector units and tensor cores."""
    return max(8, 8 * round(channels * width / 8))


class ConvBlock(nn.Sequential):
    """Convolution, then batch normalisation if asked for; the activation is the caller's."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        # Batch normalisation subtracts the mean, so a bias in front of it would do nothing.
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=not batch_norm)
        if batch_norm:
            self.norm = nn.BatchNorm2d(outputs)


def is_normalised(batch_norm: str) -> bool:
    """Whether batch normalisation stands behind the convolutions of the backbone.

    Raises:
        ValueError: it is none of `BATCH_NORMS`, whose meanings are told by `ssd.model.SSD300`.
    """
    if batch_norm not in BATCH_NORMS:
        raise ValueError(f"batch_norm: expected {' or '.join(BATCH_NORMS)}, got {batch_norm!r}")
    return batch_norm != "none"


def conv_names() -> Iterator[str]:
    """The names of VGG16's 13 convolutions, in order."""
    return (name for stage in VGG16_STAGES for name, _ in stage)


class VGG16(nn.Module):
    """The backbone: images to the feature maps of conv4_3 (stride 8) and fc7 (stride 16).

    Args:
        batch_norm: batch normalisation behind each convolution: none in `none`, all in `backbone` and `all`.
        width: factor on every number of channels.

    Raises:
        ValueError: `batch_norm` is another word.
    """

    def __init__(self, batch_norm: str = "none", width: float = 1.0) -> None:
        super().__init__()
        self.is_normalised = is_normalised(batch_norm)
        inputs = 3
        for stage in VGG16_STAGES:
            for name, channels in stage:
                outputs = scaled(channels, width)
                self.add_module(name, ConvBlock(inputs, outputs, 3, padding=1, batch_norm=self.is_normalised))
                inputs = outputs
        outputs = scaled(FC_CHANNELS, width)
        self.fc6 = ConvBlock(inputs, outputs, 3, padding=6, dilation=6, batch_norm=self.is_normalised)
        self.fc7 = ConvBlock(outputs, outputs, 1, batch_norm=self.is_normalised)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2, ceil_mode=True)  # 75 → 38, not 37
        self.pool5 = nn.MaxPool2d(3, stride=1, padding=1)

    @staticmethod
    def layer_names() -> list[str]:
        """The names of its convolutions, from the image to fc7."""
        return [*conv_names(), "fc6", "fc7"]

    def _stage(self, number: int, x: Tensor) -> Tensor:
        """One stage without the activation of its last convolution."""
        names = [name for name, _ in VGG16_STAGES[number - 1]]
        for name in names[:-1]:
            x = self.relu(self.get_submodule(name)(x))
        return self.get_submodule(names[-1])(x)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, 3, 300, 300]` → conv4_3 `[B, 512, 38, 38]`, fc7 `[B, 1024, 19, 19]` (channels at width 1).

        A ReLU and a max-pool behind it may change places without changing the result; behind the pool the ReLU has a
        quarter of the values to read and write.
        """
        x = self.relu(self.pool(self._stage(1, images)))  # [B, 64, 150, 150]
        x = self.relu(self.pool(self._stage(2, x)))  # [B, 128, 75, 75]
        x = self.relu(self.pool3(self._stage(3, x)))  # [B, 256, 38, 38]
        conv4_3 = self.relu(self._stage(4, x))
        x = self.pool(conv4_3)  # [B, 512, 19, 19]
        x = self.relu(self.pool5(self._stage(5, x)))
        x = self.relu(self.fc6(x))
        return conv4_3, self.relu(self.fc7(x))
