"""What every backbone is: a module that makes the first feature maps of a network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from ssd.preprocessing import Preprocessing


class WeightsError(ValueError):
    """A state dict does not hold weights of a backbone; the message says what is missing or expected."""


class Backbone(nn.Module, ABC):
    """A backbone; `ssd.backbones.build_backbone` makes one for a row of the table of architectures."""

    layer_names: ClassVar[tuple[str, ...]]  # names of its modules from the image to the last map, for `SSD.freeze`
    out_channels: tuple[int, ...]  # of each map
    has_batch_norm: bool

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the first feature maps of the network, from the finest, for images `[B, 3, S, S]`; extra layers follow the
        last one."""

    @abstractmethod
    def convert(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Preprocessing]:
        """Convert a state dict of another project to weights of this backbone; layers may be missing in the result.

        Returns:
            The weights by their names here, and the preprocessing that they were trained with.

        Raises:
            WeightsError: the state dict holds other weights, or not all that are needed.
        """
