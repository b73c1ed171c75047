"""The table of network architectures. What depends on a network's shape is derived from its row.

Nothing here imports torch: the configuration reads the table too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, NamedTuple


class Conv(NamedTuple):
    """One convolution."""

    name: str
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    depthwise: bool = False  # each channel by itself

    def at_width(self, width: float) -> "Conv":
        """Return this layer with `width` times its channels, rounded to a multiple of 8 for vector units and tensor cores."""
        return self._replace(channels=max(8, 8 * round(self.channels * width / 8)))


class FeatureMap(NamedTuple):
    """One feature map with detection heads."""

    layer: str  # the layer of the backbone or the extra layer that makes it
    step: float  # pixels of the network input between the centres of neighbouring cells
    aspect_ratios: tuple[float, ...]  # each adds a wide and a tall DBox to the two square ones of a cell


class NormConstants(NamedTuple):
    """The constants of batch normalisation."""

    epsilon: float = 1e-5  # added to the variance
    momentum: float = 0.1  # weight of a new batch in the stored statistics


PYTORCH_NORM = NormConstants()


@dataclass(frozen=True)
class Architecture:
    """One row of the table."""

    title: str  # in messages and reports
    input_size: int  # pixels a side
    backbone: str  # a name in `ssd.backbones.BACKBONES`; its maps come first in `maps`
    freezable: tuple[str, ...]  # `model.freeze` names one of these backbone layers
    extras: tuple[Conv, ...]  # the layers behind the backbone
    maps: tuple[FeatureMap, ...]  # from the finest to the coarsest
    dbox_sizes: Mapping[str, tuple[float, ...]]  # by name: the smallest DBox of each map and the largest of the last, in pixels
    first_map_norm: Literal["l2", "batch", "none"]  # how the first map is scaled for its heads
    coco: str | None  # torchvision's weights of the network; those of another size fit in part; None: there are none
    imagenet: tuple[str, str]  # torchvision's weights of the backbone, without and with batch normalisation
    batch_norms: tuple[str, ...] = ("none", "backbone", "all")  # possible values of `model.batch_norm`, the default first
    norm_constants: NormConstants = PYTORCH_NORM
    scalable: bool = True  # whether `model.width` can scale the channels of its backbone
    separable: bool = False  # SSDLite: depthwise and pointwise convolutions in the heads, and ReLU6 (MobileNetV2, section 6.2)

    def cells(self, feature_map: FeatureMap) -> int:
        """Return the number of cells along a side of a feature map."""
        return ceil(round(self.input_size / feature_map.step, 6))  # the step of 3 cells is no exact number

    @property
    def num_ratios(self) -> tuple[int, ...]:
        """The number of aspect ratios of each feature map."""
        return tuple(len(row.aspect_ratios) for row in self.maps)

    @property
    def boxes_per_cell(self) -> tuple[int, ...]:
        return tuple(2 + 2 * number for number in self.num_ratios)


def _pairs(first: int, *channels: tuple[int, int, int, int]) -> tuple[Conv, ...]:
    """Return pairs of extra layers, 1 × 1 and then 3 × 3: channels of both, stride and padding of the second."""
    layers: list[Conv] = []
    for number, (narrow, wide, stride, padding) in enumerate(channels, start=first):
        layers += (
            Conv(f"conv{number}_1", narrow, kernel=1, padding=0),
            Conv(f"conv{number}_2", wide, stride=stride, padding=padding),
        )
    return tuple(layers)


# SSD paper, section 3 and figure 2; ssd_pascal.py and, for small objects, ssd_coco.py.
SSD300_VGG16 = Architecture(
    title="SSD300",
    input_size=300,
    backbone="vgg16",
    freezable=("conv2_2", "conv3_3", "conv4_3", "fc7"),
    extras=_pairs(6, (256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0)),
    maps=(
        FeatureMap("conv4_3", 8, (2,)),
        FeatureMap("fc7", 16, (2, 3)),
        FeatureMap("conv6_2", 32, (2, 3)),
        FeatureMap("conv7_2", 64, (2, 3)),
        FeatureMap("conv8_2", 100, (2,)),
        FeatureMap("conv9_2", 300, (2,)),
    ),
    dbox_sizes={
        "voc": (30, 60, 111, 162, 213, 264, 315),  # SSD paper, section 3.1
        "coco": (21, 45, 99, 153, 207, 261, 315),
    },
    first_map_norm="l2",  # ParseNet, section 3.3
    coco="SSD300_VGG16_Weights.COCO_V1",
    imagenet=("VGG16_Weights.IMAGENET1K_V1", "VGG16_BN_Weights.IMAGENET1K_V1"),
)

# ssd_pascal_512.py and ssd_coco_512.py: one more pair of extra layers, whose kernel of 4 covers the map of 2 × 2.
SSD512_VGG16 = replace(
    SSD300_VGG16,
    title="SSD512",
    input_size=512,
    extras=(
        *_pairs(6, (256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 2, 1), (128, 256, 2, 1)),
        Conv("conv10_1", 128, kernel=1, padding=0),
        Conv("conv10_2", 256, kernel=4),
    ),
    maps=(
        FeatureMap("conv4_3", 8, (2,)),
        FeatureMap("fc7", 16, (2, 3)),
        FeatureMap("conv6_2", 32, (2, 3)),
        FeatureMap("conv7_2", 64, (2, 3)),
        FeatureMap("conv8_2", 128, (2, 3)),
        FeatureMap("conv9_2", 256, (2,)),
        FeatureMap("conv10_2", 512, (2,)),
    ),
    dbox_sizes={
        "voc": (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
        "coco": (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
    },
)

# SSD300 with ResNet-50 as in NVIDIA's Deep Learning Examples: conv4_x without its stride is the first map. NVIDIA also
# normalises the single cell of conv9_2.
SSD300_RESNET50 = replace(
    SSD300_VGG16,
    title="SSD300 with ResNet-50",
    backbone="resnet50",
    freezable=("conv1", "layer1", "layer2", "layer3"),
    extras=_pairs(5, (256, 512, 2, 1), (256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0)),
    maps=tuple(
        row._replace(layer=layer)
        for layer, row in zip(("layer3", *(f"conv{number}_2" for number in range(5, 10))), SSD300_VGG16.maps, strict=True)
    ),
    first_map_norm="none",
    coco=None,
    # torchvision's own detectors start from V1 as well.
    imagenet=("ResNet50_Weights.IMAGENET1K_V1",) * 2,
    batch_norms=("backbone", "all"),
)


def _separable(number: int, channels: int) -> tuple[Conv, ...]:
    """Return an extra block of SSDLite: half the channels, a depthwise convolution with stride 2, all channels."""
    return (
        Conv(f"extra{number}_1", channels // 2, kernel=1, padding=0),
        Conv(f"extra{number}_2", channels // 2, stride=2, depthwise=True),
        Conv(f"extra{number}_3", channels, kernel=1, padding=0),
    )


# MobileNetV3 paper, section 6.3, as torchvision's ssdlite320_mobilenet_v3_large has it: the tail of the backbone is halved.
SSDLITE320_MOBILENET_V3 = Architecture(
    title="SSDLite320",
    input_size=320,
    backbone="mobilenet_v3_large_reduced",
    freezable=("block3", "block6", "block12"),
    extras=(*_separable(1, 512), *_separable(2, 256), *_separable(3, 256), *_separable(4, 128)),
    maps=(
        FeatureMap("block13", 16, (2, 3)),
        FeatureMap("conv16", 32, (2, 3)),
        FeatureMap("extra1_3", 64, (2, 3)),
        FeatureMap("extra2_3", 320 / 3, (2, 3)),
        FeatureMap("extra3_3", 160, (2, 3)),
        FeatureMap("extra4_3", 320, (2, 3)),
    ),
    dbox_sizes=dict.fromkeys(
        ("voc", "coco"), (64, 112, 160, 208, 256, 304, 320)
    ),  # evenly from 0.2 to 0.95 of the input, and 1
    first_map_norm="none",
    coco="SSDLite320_MobileNet_V3_Large_Weights.COCO_V1",
    imagenet=("MobileNet_V3_Large_Weights.IMAGENET1K_V1", "MobileNet_V3_Large_Weights.IMAGENET1K_V1"),
    batch_norms=("all",),
    norm_constants=NormConstants(epsilon=1e-3, momentum=0.03),
    separable=True,
)

ARCHITECTURES = {
    "ssd300": SSD300_VGG16,
    "ssd512": SSD512_VGG16,
    "ssd300_resnet50": SSD300_RESNET50,
    "ssdlite320_mobilenet_v3": SSDLITE320_MOBILENET_V3,
    # The tail has all its channels, as in ImageNet's weights.
    "ssdlite320_mobilenet_v3_full": replace(
        SSDLITE320_MOBILENET_V3,
        title="SSDLite320 (full tail)",
        backbone="mobilenet_v3_large",
        freezable=(*SSDLITE320_MOBILENET_V3.freezable, "conv16"),
    ),
}
