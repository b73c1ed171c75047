"""VGG16 as SSD uses it: without its classifier, with fc6 and fc7 as convolutions (SSD paper, section 3; ParseNet; DeepLab)."""

from torch import Tensor, nn

from ssd.architecture import SSD300_VGG16, Conv

STAGES = SSD300_VGG16.backbone
LAYER_NAMES = [layer.name for stage in STAGES for layer in stage]  # from the image to fc7
CONV_NAMES = LAYER_NAMES[:-2]  # the 13 convolutions of VGG16 itself
BATCH_NORMS = ("none", "backbone", "all")


class ConvBlock(nn.Sequential):
    """A convolution, optionally with batch normalisation. The caller applies the activation."""

    def __init__(self, inputs: int, layer: Conv, batch_norm: bool = False) -> None:
        super().__init__()
        _, outputs, kernel, stride, padding, dilation = layer
        # Batch normalisation subtracts the mean, so a bias before it has no effect.
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=not batch_norm)
        if batch_norm:
            self.norm = nn.BatchNorm2d(outputs)


class VGG16(nn.Module):
    """The backbone: images to the feature maps of conv4_3 (stride 8) and fc7 (stride 16).

    Args:
        batch_norm: `none`, or `backbone` or `all` for batch normalisation after each convolution.
        width: factor on the number of channels of every layer.

    Raises:
        ValueError: `batch_norm` has another value.
    """

    def __init__(self, batch_norm: str = "none", width: float = 1.0) -> None:
        super().__init__()
        if batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm: expected {' or '.join(BATCH_NORMS)}, got {batch_norm!r}")
        self.has_batch_norm = batch_norm != "none"
        inputs, ends = 3, []
        for stage in STAGES:
            for layer in stage:
                layer = layer.at_width(width)
                self.add_module(layer.name, ConvBlock(inputs, layer, self.has_batch_norm))
                inputs = layer.channels
            ends.append(inputs)
        self.out_channels = ends[3], ends[5]  # of conv4_3 and fc7
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2, ceil_mode=True)  # 75 → 38, not 37
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
