"""SSD300: the VGG16 backbone, the extra feature layers, and the heads that predict offsets and class scores."""

from typing import Self

import torch
from torch import Tensor, nn

from ssd.architecture import SSD300_VGG16, Conv
from ssd.backbones.vgg import LAYER_NAMES, VGG16, ConvBlock
from ssd.dbox import SSD300_VOC, DBoxSpec, make_dbox_list


class L2Norm(nn.Module):
    """Scale the feature vector of each cell to length 1, then by a learned factor per channel (ParseNet, section 3.3)."""

    def __init__(self, channels: int, scale: float = 20.0, epsilon: float = 1e-10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        # The sum of squares is float32, because bfloat16 would round it. The products keep the precision of the activations:
        # a float32 copy of this map would cost more than the rest of the layer.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        # For a cell of zeros the factor is 1e5: infinite in float16, and its product with 0 NaN.
        factor = torch.rsqrt(norm.square() + self.epsilon).clamp(max=torch.finfo(x.dtype).max)  # [B, 1, H, W]
        return x * factor.to(x.dtype) * self.weight.to(x.dtype)[:, None, None]


class ExtraLayers(nn.Module):
    """conv6_1 to conv9_2: the four smallest feature maps (SSD paper, figure 2)."""

    def __init__(self, inputs: int, batch_norm: bool, width: float) -> None:
        super().__init__()
        cells = {row.layer: SSD300_VGG16.cells(row) for row in SSD300_VGG16.maps}
        self.sources = [layer.name for layer in SSD300_VGG16.extras if layer.name in cells]
        self.out_channels = []
        for layer in SSD300_VGG16.extras:
            layer = layer.at_width(width)
            # One cell has no variance: in a batch of one image, a norm after conv9_2 would fail.
            self.add_module(layer.name, ConvBlock(inputs, layer, batch_norm and cells.get(layer.name) != 1))
            if layer.name in cells:
                self.out_channels.append(layer.channels)
            inputs = layer.channels
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of conv6_2, conv7_2, conv8_2 and conv9_2 for the map of fc7."""
        maps = []
        for name, block in self.named_children():
            if name != "relu":
                x = self.relu(block(x))
                if name in self.sources:
                    maps.append(x)
        return maps


CONV4_3_NORMS = {"l2": L2Norm, "batch": nn.BatchNorm2d, "none": nn.Identity}


class SSD300(nn.Module):
    """SSD for inputs of 300 × 300 pixels (Liu et al., ECCV 2016).

    The values of `batch_norm` follow ScratchDet (Zhu et al., CVPR 2019, arXiv 1810.08425), which trains SSD from scratch. In
    its published code the backbone includes the extra layers, and the detection head is the convolutions that predict offsets
    and scores:

    - `none`: no batch normalisation, as in the SSD paper; for pretrained weights without it.
    - `backbone`: after each convolution of VGG16 and the extra layers.
    - `all`: after those of the heads as well.

    A convolution before a norm has no bias. conv9_2 and the heads on its map are never normalised: one cell has no variance in
    a batch of one image.

    Args:
        num_classes: columns of the class scores, including background: 21 for VOC.
        batch_norm: `none`, `backbone` or `all`: see above.
        width: factor on the number of channels of every layer, for small machines.
        spec: the DBoxes.
        conv4_3_norm: how the features of conv4_3 are scaled for their heads: `l2`, as in the paper; `none`, as in ScratchDet
            (section 4.1), where batch normalisation has already scaled them; `batch`, for weights of a port that uses it.

    Raises:
        ValueError: `num_classes` is below 2, `width` is not positive, or a norm is unknown.
    """

    dbox_list: Tensor

    def __init__(
        self,
        num_classes: int,
        batch_norm: str = "none",
        width: float = 1.0,
        spec: DBoxSpec = SSD300_VOC,
        conv4_3_norm: str = SSD300_VGG16.first_map_norm,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: expected background and at least one class (2 or more), got {num_classes}")
        if not width > 0:
            raise ValueError(f"width: expected a positive factor, got {width}")
        if conv4_3_norm not in CONV4_3_NORMS:
            raise ValueError(f"conv4_3_norm: expected {' or '.join(CONV4_3_NORMS)}, got {conv4_3_norm!r}")
        self.num_classes = num_classes
        self.width = width
        self.frozen: list[str] = []  # layers of the backbone
        self.backbone = VGG16(batch_norm, width)
        conv4_3_channels, fc7_channels = self.backbone.out_channels
        self.conv4_3_norm = CONV4_3_NORMS[conv4_3_norm](conv4_3_channels)
        self.extras = ExtraLayers(fc7_channels, self.backbone.has_batch_norm, width)
        self.loc, self.conf = nn.ModuleList(), nn.ModuleList()
        for inputs, row in zip([*self.backbone.out_channels, *self.extras.out_channels], spec.maps, strict=True):
            has_norm = batch_norm == "all" and row.cells > 1
            self.loc.append(_head(inputs, row.boxes_per_cell * 4, has_norm))
            self.conf.append(_head(inputs, row.boxes_per_cell * num_classes, has_norm))
        self.register_buffer("dbox_list", make_dbox_list(spec), persistent=False)
        self.init_weights()

    def freeze(self, last: str) -> None:
        """Freeze the weights and batch statistics of the backbone from the image up to a layer.

        Frozen layers get no gradient, and the backward pass ends after them. In training they normalise by their stored
        statistics.

        Args:
            last: the last frozen layer: a convolution of the backbone, such as `conv3_3`, or `fc7`.

        Raises:
            ValueError: the backbone has no such layer.
        """
        if last not in LAYER_NAMES:
            raise ValueError(f"freeze: expected one of {', '.join(LAYER_NAMES)}, got {last!r}")
        self.frozen = LAYER_NAMES[: LAYER_NAMES.index(last) + 1]
        for name in self.frozen:
            self.backbone.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.backbone.get_submodule(name).eval()
        return self

    def init_weights(self) -> None:
        """Draw Xavier uniform weights and set biases to zero, as ssd_pascal.py; He normal where batch norm and ReLU follow.

        The latter are the normalised convolutions of backbone and extra layers; no ReLU follows the heads.
        """
        blocks = [*self.backbone.children(), *self.extras.children()]
        before_relu = {block.conv for block in blocks if isinstance(block, ConvBlock) and hasattr(block, "norm")}
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                if conv in before_relu:
                    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                else:
                    nn.init.xavier_uniform_(conv.weight)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return raw predictions, in training and evaluation alike.

        Args:
            images: `[B, 3, 300, 300]`, normalised for the weights (`ssd.preprocessing`).

        Returns:
            loc `[B, P, 4]` offsets, conf `[B, P, C]` logits (column 0 = background), dbox_list `[P, 4]` centres.
        """
        conv4_3, fc7 = self.backbone(images)
        maps = [self.conv4_3_norm(conv4_3), fc7, *self.extras(fc7)]
        loc = [_by_dbox(head(x), 4) for head, x in zip(self.loc, maps, strict=True)]
        conf = [_by_dbox(head(x), self.num_classes) for head, x in zip(self.conf, maps, strict=True)]
        return torch.cat(loc, dim=1), torch.cat(conf, dim=1), self.dbox_list


def _head(inputs: int, outputs: int, batch_norm: bool) -> nn.Module:
    """Return the convolution that predicts offsets or scores, optionally with batch normalisation."""
    block = ConvBlock(inputs, Conv("head", outputs), batch_norm)
    return block if batch_norm else block.conv  # without a norm, checkpoints name the convolution itself


def _by_dbox(x: Tensor, values: int) -> Tensor:
    """Reorder `[B, boxes · values, H, W]` to `[B, H · W · boxes, values]`, the order of `make_dbox_list`."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)  # len(x) would be a constant when exported
