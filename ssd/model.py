"""SSD300: the VGG16 backbone, the extra feature layers, and the heads that predict offsets and class scores."""

from typing import Self

import torch
from torch import Tensor, nn

from ssd.backbones.vgg import CONV4_3_CHANNELS, FC_CHANNELS, VGG16, ConvBlock, scaled
from ssd.dbox import SSD300_VOC, DBoxSpec, make_dbox_list


class L2Norm(nn.Module):
    """Each cell's feature vector scaled to length 1, then by a learned factor a channel (ParseNet, section 3.3)."""

    def __init__(self, channels: int, scale: float = 20.0, epsilon: float = 1e-10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        # The sum of squares in float32, since bfloat16 would round it; the products in the activations' own precision,
        # since a float32 copy of this map costs more than the whole layer.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        # A cell of zeros has a factor of 1e5, which float16 would make infinite, and its product NaN.
        factor = torch.rsqrt(norm.square() + self.epsilon).clamp(max=torch.finfo(x.dtype).max)  # [B, 1, H, W]
        return x * factor.to(x.dtype) * self.weight.to(x.dtype)[:, None, None]


class ExtraLayers(nn.Module):
    """conv6_1 to conv9_2: the four smallest feature maps (SSD paper, figure 2)."""

    def __init__(self, inputs: int, batch_norm: bool, width: float) -> None:
        super().__init__()
        # Name, channels, kernel, stride, padding.
        rows = (
            ("conv6_1", 256, 1, 1, 0),
            ("conv6_2", 512, 3, 2, 1),  # 19 → 10
            ("conv7_1", 128, 1, 1, 0),
            ("conv7_2", 256, 3, 2, 1),  # 10 → 5
            ("conv8_1", 128, 1, 1, 0),
            ("conv8_2", 256, 3, 1, 0),  # 5 → 3
            ("conv9_1", 128, 1, 1, 0),
            ("conv9_2", 256, 3, 1, 0),  # 3 → 1
        )
        self.out_channels = []
        for name, channels, kernel, stride, padding in rows:
            outputs = scaled(channels, width)
            # One cell has no variance to normalise by: in a batch of one image a norm of conv9_2 would fail.
            normalise = batch_norm and name != "conv9_2"
            block = ConvBlock(inputs, outputs, kernel, stride=stride, padding=padding, batch_norm=normalise)
            self.add_module(name, block)
            if name.endswith("_2"):
                self.out_channels.append(outputs)
            inputs = outputs
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """fc7's map → the maps of conv6_2, conv7_2, conv8_2 and conv9_2."""
        sources = []
        for name, block in self.named_children():
            if name != "relu":
                x = self.relu(block(x))
                if name.endswith("_2"):
                    sources.append(x)
        return sources


CONV4_3_NORMS = {"l2": L2Norm, "batch": nn.BatchNorm2d, "none": nn.Identity}


class SSD300(nn.Module):
    """SSD with inputs of 300 × 300 pixels (Liu et al., ECCV 2016).

    Where `batch_norm` puts batch normalisation follows ScratchDet (Zhu et al., CVPR 2019, arXiv 1810.08425), which trains SSD
    from scratch. In its published code the backbone makes all six feature maps, the extra layers included, and the detection
    head is the convolutions that predict offsets and scores:

    - `none`: nowhere, as in the paper of SSD; for pretrained weights without it.
    - `backbone`: behind each convolution of VGG16 and of the extra layers; what was `True` when this was a bool.
    - `all`: behind those of the heads as well.

    A convolution in front of a norm has no bias. conv9_2 and the heads on its map are never normalised: one cell has no
    variance in a batch of one image.

    Args:
        num_classes: columns of the class scores, background included: 21 for VOC.
        batch_norm: `none`, `backbone` or `all`: see above.
        width: factor on every number of channels, for small machines.
        spec: the DBoxes.
        conv4_3_norm: what scales the features of conv4_3 for their heads: `l2`, the paper's; `none`, as ScratchDet has it
            (section 4.1), where batch normalisation has scaled them; `batch`, as one of the ports has it: to use its weights.

    Raises:
        ValueError: `num_classes` leaves no class beside the background, `width` is not positive, or a norm is unknown.
    """

    dbox_list: Tensor

    def __init__(
        self,
        num_classes: int,
        batch_norm: str = "none",
        width: float = 1.0,
        spec: DBoxSpec = SSD300_VOC,
        conv4_3_norm: str = "l2",
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
        fc7_channels = scaled(FC_CHANNELS, width)
        conv4_3_channels = scaled(CONV4_3_CHANNELS, width)
        self.backbone = VGG16(batch_norm, width)
        self.conv4_3_norm = CONV4_3_NORMS[conv4_3_norm](conv4_3_channels)
        self.extras = ExtraLayers(fc7_channels, self.backbone.is_normalised, width)
        channels = [conv4_3_channels, fc7_channels, *self.extras.out_channels]
        self.loc, self.conf = nn.ModuleList(), nn.ModuleList()
        for inputs, row in zip(channels, spec.maps, strict=True):
            normalise = batch_norm == "all" and row.cells > 1
            self.loc.append(_head(inputs, row.boxes_per_cell * 4, normalise))
            self.conf.append(_head(inputs, row.boxes_per_cell * num_classes, normalise))
        self.register_buffer("dbox_list", make_dbox_list(spec), persistent=False)
        self.init_weights()

    def freeze(self, last: str) -> None:
        """Keeps the weights and the batch statistics of the backbone from the image up to a layer.

        They get no gradient, and the backward pass ends behind them. In training they normalise by the statistics that they
        have.

        Args:
            last: the last layer that is kept: the name of a convolution of the backbone, such as `conv3_3`, or `fc7`.

        Raises:
            ValueError: there is no such layer.
        """
        names = self.backbone.layer_names()
        if last not in names:
            raise ValueError(f"freeze: expected one of {', '.join(names)}, got {last!r}")
        self.frozen = names[: names.index(last) + 1]
        for name in self.frozen:
            self.backbone.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As every module's; frozen layers stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.backbone.get_submodule(name).eval()
        return self

    def init_weights(self) -> None:
        """Xavier uniform weights and zero biases, as ssd_pascal.py; He's, made for ReLU, where a norm and a ReLU follow.

        These are the normalised convolutions of backbone and extra layers; no ReLU stands behind the heads.
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
        """Raw predictions, in training and evaluation alike.

        Args:
            images: `[B, 3, 300, 300]`, prepared as the weights want them (`ssd.preprocessing`).

        Returns:
            loc `[B, P, 4]` offsets, conf `[B, P, C]` logits (column 0 = background), dbox_list `[P, 4]` centres.
        """
        conv4_3, fc7 = self.backbone(images)
        sources = [self.conv4_3_norm(conv4_3), fc7, *self.extras(fc7)]
        loc = [_by_dbox(head(x), 4) for head, x in zip(self.loc, sources, strict=True)]
        conf = [_by_dbox(head(x), self.num_classes) for head, x in zip(self.conf, sources, strict=True)]
        return torch.cat(loc, dim=1), torch.cat(conf, dim=1), self.dbox_list


def _head(inputs: int, outputs: int, batch_norm: bool) -> nn.Module:
    """The convolution that predicts offsets or scores, with a norm behind it if asked for."""
    block = ConvBlock(inputs, outputs, 3, padding=1, batch_norm=batch_norm)
    return block if batch_norm else block.conv  # alone it has the names that all checkpoints know


def _by_dbox(x: Tensor, values: int) -> Tensor:
    """`[B, boxes · values, H, W]` → `[B, H · W · boxes, values]`, the order of `make_dbox_list`."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)  # len(x) would be a constant when exported
