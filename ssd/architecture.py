"""The table of network architectures. What depends on a network's shape is derived from its row.

Nothing here imports torch: the configuration reads the table too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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

    def at_width(self, width: float) -> "Conv":
        """Return this layer with `width` times its channels, rounded to a multiple of 8 for vector units and tensor cores."""
        return self._replace(channels=max(8, 8 * round(self.channels * width / 8)))


class FeatureMap(NamedTuple):
    """One feature map with detection heads."""

    layer: str  # the convolution that makes it
    step: int  # pixels of the network input between the centres of neighbouring cells
    aspect_ratios: tuple[float, ...]  # each adds a wide and a tall DBox to the two square ones of a cell


@dataclass(frozen=True)
class Architecture:
    """One row of the table."""

    input_size: int  # pixels a side
    backbone: tuple[tuple[Conv, ...], ...]  # convolutions in stages, with pooling between the stages
    freezable: tuple[str, ...]  # `model.freeze` names one of these backbone layers
    extras: tuple[Conv, ...]  # the layers behind the backbone
    maps: tuple[FeatureMap, ...]  # from the finest to the coarsest
    dbox_sizes: Mapping[str, tuple[float, ...]]  # by name: the smallest DBox of each map and the largest of the last, in pixels
    first_map_norm: Literal["l2", "batch", "none"]  # how the first map is scaled for its heads

    def cells(self, feature_map: FeatureMap) -> int:
        """Return the number of cells along a side of a feature map."""
        return ceil(self.input_size / feature_map.step)


# SSD paper, section 3 and figure 2: VGG16 without its classifier; fc6 and fc7 are convolutions (DeepLab, ParseNet).
SSD300_VGG16 = Architecture(
    input_size=300,
    backbone=(
        (Conv("conv1_1", 64), Conv("conv1_2", 64)),
        (Conv("conv2_1", 128), Conv("conv2_2", 128)),
        (Conv("conv3_1", 256), Conv("conv3_2", 256), Conv("conv3_3", 256)),
        (Conv("conv4_1", 512), Conv("conv4_2", 512), Conv("conv4_3", 512)),
        (Conv("conv5_1", 512), Conv("conv5_2", 512), Conv("conv5_3", 512)),
        (Conv("fc6", 1024, padding=6, dilation=6), Conv("fc7", 1024, kernel=1, padding=0)),
    ),
    freezable=("conv2_2", "conv3_3", "conv4_3", "fc7"),
    extras=(
        Conv("conv6_1", 256, kernel=1, padding=0),
        Conv("conv6_2", 512, stride=2),
        Conv("conv7_1", 128, kernel=1, padding=0),
        Conv("conv7_2", 256, stride=2),
        Conv("conv8_1", 128, kernel=1, padding=0),
        Conv("conv8_2", 256, padding=0),
        Conv("conv9_1", 128, kernel=1, padding=0),
        Conv("conv9_2", 256, padding=0),
    ),
    maps=(
        FeatureMap("conv4_3", 8, (2,)),
        FeatureMap("fc7", 16, (2, 3)),
        FeatureMap("conv6_2", 32, (2, 3)),
        FeatureMap("conv7_2", 64, (2, 3)),
        FeatureMap("conv8_2", 100, (2,)),
        FeatureMap("conv9_2", 300, (2,)),
    ),
    dbox_sizes={
        "voc": (30, 60, 111, 162, 213, 264, 315),  # SSD paper, section 3.1; ssd_pascal.py
        "coco": (21, 45, 99, 153, 207, 261, 315),  # for small objects; ssd_coco.py
    },
    first_map_norm="l2",  # ParseNet, section 3.3
)

ARCHITECTURES = {"ssd300": SSD300_VGG16}
