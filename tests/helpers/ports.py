"""Other projects' networks, built with their published names and shapes and random weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV4_3_END = 23  # layers of the list up to the ReLU of conv4_3


class L2Norm(nn.Module):
    def __init__(self, entry: str) -> None:
        super().__init__()
        self.register_parameter(entry, nn.Parameter(torch.rand(512) * 20))

    def forward(self, x: Tensor) -> Tensor:
        (weight,) = self.parameters()
        return F.normalize(x, dim=1) * weight[None, :, None, None]


def reduced_fc() -> list[nn.Module]:
    """Return VGG16's layers in a list, as in ports of the Caffe code."""
    layers: list[nn.Module] = []
    inputs = 3
    for value in (64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512):
        if isinstance(value, int):
            layers += [nn.Conv2d(inputs, value, 3, padding=1), nn.ReLU()]
            inputs = value
        else:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=value == "C"))
    layers += [nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU()]
    return [*layers, nn.Conv2d(1024, 1024, 1), nn.ReLU()]


def extra_layers(size: int = 300) -> list[nn.Module]:
    rows = ((1024, 256, 1, 1, 0), (256, 512, 3, 2, 1), (512, 128, 1, 1, 0), (128, 256, 3, 2, 1))
    if size == 300:
        rows += ((256, 128, 1, 1, 0), (128, 256, 3, 1, 0)) * 2
    else:
        rows += ((256, 128, 1, 1, 0), (128, 256, 3, 2, 1)) * 2
        rows += ((256, 128, 1, 1, 0), (128, 256, 4, 1, 1))
    return [nn.Conv2d(*row) for row in rows]


def heads(values: int, size: int = 300) -> nn.ModuleList:
    boxes_per_cell = (4, 6, 6, 6, 4, 4) if size == 300 else (4, 6, 6, 6, 6, 4, 4)
    channels = (512, 1024, 512, *[256] * (len(boxes_per_cell) - 3))
    rows = zip(channels, boxes_per_cell, strict=True)
    return nn.ModuleList(nn.Conv2d(channels, boxes * values, 3, padding=1) for channels, boxes in rows)


class Port(nn.Module):
    """The forward pass of all three ports, which differ in the names of their modules."""

    columns: int  # of the class scores

    def run(self, x: Tensor, base: nn.ModuleList, norm: nn.Module, extras: list[nn.Module], loc, conf) -> tuple[Tensor, Tensor]:
        sources = []
        for layer in base[:CONV4_3_END]:
            x = layer(x)
        sources.append(norm(x))
        for layer in base[CONV4_3_END:]:
            x = layer(x)
        sources.append(x)
        for number, layer in enumerate(extras):
            x = F.relu(layer(x))
            if number % 2:
                sources.append(x)
        outputs = []
        for group in (loc, conf):
            maps = [head(source).permute(0, 2, 3, 1).flatten(1) for head, source in zip(group, sources, strict=True)]
            values = 4 if group is loc else self.columns
            outputs.append(torch.cat(maps, 1).view(len(x), -1, values))
        return outputs[0], outputs[1]


class Amdegroot(Port):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.vgg, self.extras = nn.ModuleList(reduced_fc()), nn.ModuleList(extra_layers())
        self.L2Norm = L2Norm("weight")
        self.loc, self.conf = heads(4), heads(columns)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(x, self.vgg, self.L2Norm, list(self.extras), self.loc, self.conf)


class Lufficc(Port):
    def __init__(self, columns: int, size: int = 300) -> None:
        super().__init__()
        self.columns = columns
        self.backbone, self.box_head = nn.Module(), nn.Module()
        self.backbone.vgg, self.backbone.extras = nn.ModuleList(reduced_fc()), nn.ModuleList(extra_layers(size))
        self.backbone.l2_norm = L2Norm("weight")
        self.box_head.predictor = nn.Module()
        predictor = self.box_head.predictor
        predictor.cls_headers, predictor.reg_headers = heads(columns, size), heads(4, size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        backbone, head = self.backbone, self.box_head.predictor
        return self.run(x, backbone.vgg, backbone.l2_norm, list(backbone.extras), head.reg_headers, head.cls_headers)


class Qfgaohao(Port):
    def __init__(self, columns: int, batch_norm: bool) -> None:
        super().__init__()
        self.columns = columns
        extras = extra_layers()
        self.base_net = nn.ModuleList(reduced_fc())
        pairs = zip(extras[::2], extras[1::2], strict=True)
        self.extras = nn.ModuleList(nn.Sequential(first, nn.ReLU(), second, nn.ReLU()) for first, second in pairs)
        self.source_layer_add_ons = nn.ModuleList([nn.BatchNorm2d(512) if batch_norm else L2Norm("scale")])
        self.regression_headers, self.classification_headers = heads(4), heads(columns)
        if batch_norm:
            norm = self.source_layer_add_ons[0]
            for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                values.uniform_(0.1, 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        extras = [layer for pair in self.extras for layer in pair if isinstance(layer, nn.Conv2d)]
        base, norm = self.base_net, self.source_layer_add_ons[0]
        return self.run(x, base, norm, extras, self.regression_headers, self.classification_headers)


PORTS = {
    "amdegroot/ssd.pytorch": lambda columns: Amdegroot(columns),
    "lufficc/SSD": lambda columns: Lufficc(columns),
    "lufficc/SSD, SSD512": lambda columns: Lufficc(columns, 512),
    "qfgaohao/pytorch-ssd": lambda columns: Qfgaohao(columns, batch_norm=True),
    "qfgaohao/pytorch-ssd, older": lambda columns: Qfgaohao(columns, batch_norm=False),
}
