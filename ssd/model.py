"""SSD: a backbone, extra feature layers, and heads that predict offsets and class scores, built from a row of the table."""

from typing import Self, cast

import torch
from torch import Tensor, nn

from ssd.architecture import SSD300_VGG16, Architecture, Conv
from ssd.backbones import build_backbone
from ssd.backbones.conv_block import BatchNorm, ConvBlock
from ssd.dbox import DBoxSpec, make_dbox_list, spec_of


class L2Norm(nn.Module):
    """Scale the feature vector of each cell to length 1, then by a learned factor per channel (ParseNet, section 3.3)."""

    def __init__(self, channels: int, scale: float = 20.0, epsilon: float = 1e-10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        # The sum of squares is float32, because bfloat16 would round it. The products keep the precision of the activations:
        # a float32 copy of this map would cost more than the rest of the layer.
        norm = cast("Tensor", torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32))  # pyright: ignore
        # For a cell of zeros the factor is 1e5: infinite in float16, and its product with 0 NaN.
        factor = torch.rsqrt(norm.square() + self.epsilon).clamp(max=torch.finfo(x.dtype).max)  # [B, 1, H, W]
        return x * factor.to(x.dtype) * self.weight.to(x.dtype)[:, None, None]


class ExtraLayers(nn.Module):
    """The layers behind the backbone, which make the smallest feature maps (SSD paper, figure 2)."""

    def __init__(self, architecture: Architecture, inputs: int, batch_norm: bool, width: float) -> None:
        super().__init__()
        cells = {row.layer: architecture.cells(row) for row in architecture.maps}
        self.sources = [layer.name for layer in architecture.extras if layer.name in cells]
        self.out_channels: list[int] = []
        for layer in architecture.extras:
            layer = layer.at_width(width)
            has_norm = batch_norm and (architecture.separable or cells.get(layer.name) != 1)
            self.add_module(layer.name, ConvBlock(inputs, layer, has_norm, architecture.norm_constants))
            if layer.name in cells:
                self.out_channels.append(layer.channels)
            inputs = layer.channels
        self.relu = nn.ReLU6(inplace=True) if architecture.separable else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of the extra layers for the last map of the backbone."""
        maps: list[Tensor] = []
        for name, block in self.named_children():
            if name != "relu":
                x = self.relu(block(x))
                if name in self.sources:
                    maps.append(x)
        return maps


CONV4_3_NORMS = {"l2": L2Norm, "batch": BatchNorm, "none": nn.Identity}


class SSD(nn.Module):
    """SSD (Liu et al., ECCV 2016), or SSDLite (MobileNetV2, section 6.2), for a row of the table of architectures.

    The values of `batch_norm` follow ScratchDet (Zhu et al., CVPR 2019, arXiv 1810.08425), which trains SSD from scratch. In
    its published code the backbone includes the extra layers, and the detection head is the convolutions that predict offsets
    and scores:

    - `none`: no batch normalisation, as in the SSD paper; for pretrained weights without it.
    - `backbone`: after each convolution of the backbone and the extra layers.
    - `all`: after those of the heads as well.

    A convolution before a norm has no bias. In SSD, layers with a single cell are never normalised, since one cell has no
    variance in a batch of one image. SSDLite always has `all`; in its heads the depthwise convolutions are normalised.

    Args:
        num_classes: columns of the class scores, including background: 21 for VOC.
        batch_norm: one of the architecture's `batch_norms`, by default the first.
        width: factor on the number of channels of every layer, for small machines.
        spec: the DBoxes, by default the architecture's for VOC.
        conv4_3_norm: how the first feature map, in VGG16 conv4_3, is scaled for its heads: `l2`, as in the paper; `none`, as in
            ScratchDet (section 4.1), where batch normalisation has already scaled it; `batch`, for weights of a port that uses
            it. By default as the architecture says.
        architecture: the row of the table.

    Raises:
        ValueError: `num_classes` is below 2, `width` is not positive, or a norm is not possible.
    """

    dbox_list: Tensor

    def __init__(
        self,
        num_classes: int,
        batch_norm: str | None = None,
        width: float = 1.0,
        spec: DBoxSpec | None = None,
        conv4_3_norm: str | None = None,
        architecture: Architecture = SSD300_VGG16,
    ) -> None:
        super().__init__()
        batch_norm = architecture.batch_norms[0] if batch_norm is None else batch_norm
        conv4_3_norm = architecture.first_map_norm if conv4_3_norm is None else conv4_3_norm
        spec = spec_of("voc", architecture) if spec is None else spec
        if num_classes < 2:
            raise ValueError(f"num_classes: expected background and at least one class (2 or more), got {num_classes}")
        if not width > 0:
            raise ValueError(f"width: expected a positive factor, got {width}")
        if conv4_3_norm not in CONV4_3_NORMS:
            raise ValueError(f"conv4_3_norm: expected {' or '.join(CONV4_3_NORMS)}, got {conv4_3_norm!r}")
        self.architecture = architecture
        self.num_classes = num_classes
        self.width = width
        self.frozen: tuple[str, ...] = ()  # layers of the backbone
        self.backbone = build_backbone(architecture, batch_norm, width)
        self.conv4_3_norm = CONV4_3_NORMS[conv4_3_norm](self.backbone.out_channels[0])
        self.extras = ExtraLayers(architecture, self.backbone.out_channels[-1], self.backbone.has_batch_norm, width)
        self.loc, self.conf = nn.ModuleList(), nn.ModuleList()
        channels = [*self.backbone.out_channels, *self.extras.out_channels]
        for inputs, row, boxes_per_cell in zip(channels, spec.maps, architecture.boxes_per_cell, strict=True):
            has_norm = batch_norm == "all" and (architecture.separable or row.cells > 1)
            self.loc.append(_head(architecture, inputs, boxes_per_cell * 4, has_norm))
            self.conf.append(_head(architecture, inputs, boxes_per_cell * num_classes, has_norm))
        self.register_buffer("dbox_list", make_dbox_list(spec), persistent=False)
        self.init_weights()

    @property
    def input_size(self) -> int:
        """Side of the input in pixels."""
        return self.architecture.input_size

    def freeze(self, last: str) -> None:
        """Freeze the weights and batch statistics of the backbone from the image up to a layer.

        Frozen layers get no gradient, and the backward pass ends after them. In training they normalise by their stored
        statistics.

        Args:
            last: the last frozen layer, one of the backbone's `layer_names`, such as `conv3_3` of VGG16.

        Raises:
            ValueError: the backbone has no such layer.
        """
        names = self.backbone.layer_names
        if last not in names:
            raise ValueError(f"freeze: expected one of {', '.join(names)}, got {last!r}")
        self.frozen = names[: names.index(last) + 1]
        for name in self.frozen:
            self.backbone.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.backbone.get_submodule(name).eval()
        return self

    def init_weights(self) -> None:
        """Draw random weights and set biases to zero.

        SSD: Xavier uniform, as in ssd_pascal.py, but He normal where batch norm and ReLU follow, in backbone and extra layers;
        no ReLU follows the heads. SSDLite: normal with a standard deviation of 0.03, as in torchvision.
        """
        blocks = [*self.backbone.modules(), *self.extras.modules()]
        before_relu = {block.conv for block in blocks if isinstance(block, ConvBlock) and hasattr(block, "norm")}
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                if self.architecture.separable:
                    nn.init.normal_(conv.weight, std=0.03)
                elif conv in before_relu:
                    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                else:
                    nn.init.xavier_uniform_(conv.weight)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return raw predictions, in training and evaluation alike.

        Args:
            images: `[B, 3, S, S]` for an input of S pixels, normalised for the weights (`ssd.preprocessing`).

        Returns:
            loc `[B, P, 4]` offsets, conf `[B, P, C]` logits (column 0 = background), dbox_list `[P, 4]` centres.
        """
        first, *others = features = self.backbone(images)
        maps: list[Tensor] = [self.conv4_3_norm(first), *others, *self.extras(features[-1])]
        loc = [_by_dbox(head(x), 4) for head, x in zip(self.loc, maps, strict=True)]
        conf = [_by_dbox(head(x), self.num_classes) for head, x in zip(self.conf, maps, strict=True)]
        return torch.cat(loc, dim=1), torch.cat(conf, dim=1), self.dbox_list


class SSD300(SSD):
    """SSD for inputs of 300 × 300 pixels with VGG16, as in the paper; the arguments are those of `SSD`."""

    def __init__(
        self,
        num_classes: int,
        batch_norm: str | None = None,
        width: float = 1.0,
        spec: DBoxSpec | None = None,
        conv4_3_norm: str | None = None,
    ) -> None:
        super().__init__(num_classes, batch_norm, width, spec, conv4_3_norm, SSD300_VGG16)


def _head(architecture: Architecture, inputs: int, outputs: int, batch_norm: bool) -> nn.Module:
    """Return the convolution that predicts offsets or scores, with batch normalisation or separable if the row says so."""
    if architecture.separable:
        layers = nn.Sequential()
        layers.depthwise = ConvBlock(inputs, Conv("depthwise", inputs, depthwise=True), batch_norm, architecture.norm_constants)
        layers.relu = nn.ReLU6(inplace=True)
        layers.pointwise = nn.Conv2d(inputs, outputs, 1)
        return layers
    block = ConvBlock(inputs, Conv("head", outputs), batch_norm, architecture.norm_constants)
    return block if batch_norm else block.conv  # without a norm, checkpoints name the convolution itself


def _by_dbox(x: Tensor, values: int) -> Tensor:
    """Reorder `[B, boxes · values, H, W]` to `[B, H · W · boxes, values]`, the order of `make_dbox_list`."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)  # len(x) would be a constant when exported
