"""A network whose layers torch.compile has fused."""

from collections import Counter

import torch
from torch import Tensor

from ssd.model import SSD300
from ssd.preprocessing import inference_format
from ssd.system.machine import require_cpp_compiler


class Compiled:
    """A network through torch.compile, for batches of any size. Use it without gradients.

    Every size of batch is compiled by itself, in some ten seconds. Batches are therefore filled up to powers of two.

    Args:
        network: as `for_inference` gives it.
        device: where it is.

    Raises:
        ConfigError: the device is a processor, and there is no C++ compiler.
    """

    def __init__(self, network: SSD300, device: torch.device) -> None:
        if device.type == "cpu":
            require_cpp_compiler("compile")
        self.network = torch.compile(network, dynamic=False)
        self.asked: Counter[int] = Counter()  # how often each size was
        self.sizes: set[int] = set()  # that are compiled

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the network makes of images `[B, 3, 300, 300]`."""
        from torch._inductor import config

        count = len(images)
        if missing := self._size(count) - count:
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        with config.patch(freezing=True):  # weights become constants, in the layout that is fastest for each layer
            loc, conf, dbox_list = self.network(images.contiguous(memory_format=inference_format(images.device)))
        return loc[:count], conf[:count], dbox_list

    def _size(self, count: int) -> int:
        """The size that a batch is filled up to: the next power of two; a larger one that is compiled already, if this one is
        asked for the first time, since the last photos of a folder are often fewer than the others."""
        size = 1 << (count - 1).bit_length()
        self.asked[size] += 1
        if size not in self.sizes and self.asked[size] == 1 and (larger := [other for other in self.sizes if other > size]):
            return min(larger)
        self.sizes.add(size)
        return size
