"""A network compiled by torch.compile, for batches of any size."""

from collections import Counter

import torch
from torch import Tensor

from ssd.model import SSD
from ssd.system.device import inference_format
from ssd.system.machine import require_cpp_compiler


class Compiled:
    """A network compiled by torch.compile, for inference only.

    Compilation takes some ten seconds for each batch size. Batches are therefore padded to powers of two.

    Args:
        network: as `for_inference` returns it.
        device: of the network.

    Raises:
        ConfigError: the device is a CPU, and no C++ compiler is installed.
    """

    def __init__(self, network: SSD, device: torch.device) -> None:
        if device.type == "cpu":
            require_cpp_compiler("compile")
        self.network = torch.compile(network, dynamic=False)
        self.requests: Counter[int] = Counter()  # by batch size
        self.sizes: set[int] = set()  # compiled batch sizes

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the network's outputs for images `[B, 3, S, S]`."""
        from torch._inductor import config

        count = len(images)
        if missing := self._size(count) - count:
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        with config.patch(freezing=True):  # weights become constants, in the layout that is fastest for each layer
            loc, conf, dbox_list = self.network(images.contiguous(memory_format=inference_format(images.device)))
        return loc[:count], conf[:count], dbox_list

    def _size(self, count: int) -> int:
        """Return the size to pad a batch to: the next power of two, but a larger compiled size on the first request, since the
        last batch of a folder is often smaller than the others."""
        size = 1 << (count - 1).bit_length()
        self.requests[size] += 1
        if size not in self.sizes and self.requests[size] == 1 and (larger := [other for other in self.sizes if other > size]):
            return min(larger)
        self.sizes.add(size)
        return size
