"""The convolution that networks are built of, optionally with batch normalisation."""

from torch import Tensor, nn
from torch.nn import functional as F

from ssd.architecture import PYTORCH_NORM, Conv, NormConstants


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that can train on one value per channel.

    One value has no variance: a map of one cell, in a batch of one image, is normalised by the stored statistics.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class ConvBlock(nn.Sequential):
    """A convolution, optionally with batch normalisation. The caller applies the activation."""

    def __init__(
        self, inputs: int, layer: Conv, batch_norm: bool = False, norm_constants: NormConstants = PYTORCH_NORM
    ) -> None:
        super().__init__()
        _, outputs, kernel, stride, padding, dilation, is_depthwise = layer
        groups = inputs if is_depthwise else 1
        # Batch normalisation subtracts the mean, so a bias before it has no effect.
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=not batch_norm)
        if batch_norm:
            self.norm = BatchNorm(outputs, norm_constants.epsilon, norm_constants.momentum)
