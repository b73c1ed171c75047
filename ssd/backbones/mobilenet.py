"""MobileNetV3-Large (Howard et al., ICCV 2019, arXiv 1905.02244) as torchvision's SSDLite uses it."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large

from ssd.architecture import PYTORCH_NORM, NormConstants
from ssd.backbones.backbone import Backbone, WeightsError
from ssd.backbones.conv_block import BatchNorm
from ssd.preprocessing import IMAGENET, Preprocessing

SPLIT = "block13"  # the first map is made by its expansion (paper, section 6.3)
TAIL = ("block13.block.3.", "block14.", "block15.", "conv16.")  # layers with half the channels in the reduced tail


class MobileNetV3Large(Backbone):
    """The backbone: images to the expansion in block 13 (stride 16) and to the last convolution (stride 32).

    Args:
        batch_norm: `all`; there is no MobileNet without batch normalisation.
        width: factor on the number of channels of every layer.
        norm_constants: of batch normalisation.
        reduced_tail: halve the channels from the end of block 13 on (paper, table 6), as in weights for detection.
    """

    layer_names = ("conv0", *(f"block{number}" for number in range(1, 16)), "conv16")

    def __init__(
        self,
        batch_norm: str = "all",
        width: float = 1.0,
        norm_constants: NormConstants = PYTORCH_NORM,
        reduced_tail: bool = False,
    ) -> None:
        super().__init__()
        self.has_batch_norm = True
        self.reduced_tail = reduced_tail
        norm = partial(BatchNorm, eps=norm_constants.epsilon, momentum=norm_constants.momentum)
        layers = mobilenet_v3_large(norm_layer=norm, width_mult=width, reduced_tail=reduced_tail).features
        for name, layer in zip(self.layer_names, layers, strict=True):
            self.add_module(name, layer)
        expansion, last = self._split_block()[0], self.get_submodule("conv16")
        self.out_channels = tuple(_channels(layer) for layer in (expansion, last))

    def _split_block(self) -> nn.Sequential:
        block = self.get_submodule(f"{SPLIT}.block")
        assert isinstance(block, nn.Sequential)
        return block

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of block 13 `[B, 672, 20, 20]` and conv16 `[B, 960, 10, 10]` (at width 1; with the reduced tail
        480 channels) for images `[B, 3, 320, 320]`."""
        x = first = images
        for name in self.layer_names:
            if name == SPLIT:
                expansion, *rest = self._split_block()
                x = first = expansion(x)
                for layer in rest:
                    x = layer(x)
            else:
                x = self.get_submodule(name)(x)
        return first, x

    def convert(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Preprocessing]:
        """Convert torchvision's MobileNetV3-Large; the reduced tail has no counterpart there."""
        converted: dict[str, Tensor] = {}
        for place, name in enumerate(self.layer_names):
            prefix = f"features.{place}."
            converted |= {f"{name}.{key.removeprefix(prefix)}": state[key] for key in state if key.startswith(prefix)}
        own = self.state_dict()
        for name in own:
            if name not in converted and not name.endswith("num_batches_tracked"):
                place = self.layer_names.index(name.partition(".")[0])
                raise WeightsError(f"is not torchvision's MobileNetV3-Large: features.{place} lacks {name.partition('.')[2]}")
        left = TAIL if self.reduced_tail else ()
        return {name: value for name, value in converted.items() if name in own and not name.startswith(left)}, IMAGENET


def _channels(layer: nn.Module) -> int:
    """Return the number of channels that a convolution with a norm makes."""
    return next(module.num_features for module in layer.modules() if isinstance(module, nn.BatchNorm2d))
