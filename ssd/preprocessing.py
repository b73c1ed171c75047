"""Image preprocessing: which pixels of a photo become the network's input, and how. Defined once, kept in every checkpoint."""

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ssd.boxes import is_apple


class Preprocessing(NamedTuple):
    """What a set of weights expects of its images. Means and scales are per channel, in the order R, G, B."""

    mean: tuple[float, float, float]  # subtracted from pixels in 0..255
    scale: tuple[float, float, float]  # what the difference is multiplied by
    channel_order: str = "rgb"  # rgb | bgr, of the network's input
    size: int = 300  # pixels a side; the image is stretched to it

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean as a colour (R, G, B), which the network sees as 0: what surrounds an image in expansion."""
        red, green, blue = (round(value) for value in self.mean)
        return red, green, blue

    def to_plain(self) -> dict[str, object]:
        """Plain values, as a checkpoint holds them; `Preprocessing(**values)` reads them."""
        return self._asdict()


# torchvision's ImageNet weights: pixels in 0..1, normalised.
IMAGENET = Preprocessing(mean=(123.675, 116.28, 103.53), scale=(1 / 58.395, 1 / 57.12, 1 / 57.375))
# Weights that come from Caffe's VGG16, in the ports that turned its first layer to RGB: the mean alone.
CAFFE = Preprocessing(mean=(123.0, 117.0, 104.0), scale=(1.0, 1.0, 1.0))

# VGG16's own weights, as Oxford trained them, with the first layer turned to RGB: the mean alone.
OXFORD = Preprocessing(mean=(123.68, 116.779, 103.939), scale=(1.0, 1.0, 1.0))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """A photo `[H, W, 3]` uint8, stretched to the network's input as in evaluation: linear, without regard to the aspect."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def inference_format(device: torch.device) -> torch.memory_format:
    """The memory format of activations in inference: channels_last, but contiguous on Apple's GPUs, where batch normalisation
    is reported to be wrong in the other."""
    return torch.contiguous_format if is_apple(device) else torch.channels_last


def normalize(
    images: Tensor,
    preprocessing: Preprocessing,
    device: torch.device | None = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Pixels to network input, on the device: only bytes travel there.

    Args:
        images: `[B, H, W, 3]` uint8, RGB.
        preprocessing: what the weights expect.
        device: where the result shall be; by default where `images` are.
        memory_format: of the result, which that of all activations follows; by default that of inference. Pixels lie as
            channels_last has them.

    Returns:
        `[B, 3, H, W]` float32.
    """
    # Apple's GPUs would read memory that may be gone by then.
    is_cuda = device is not None and device.type == "cuda"
    pixels = images.to(device, non_blocking=is_cuda).permute(0, 3, 1, 2).float()
    # What is made while code is compiled or exported belongs to that alone.
    constants = _constants.__wrapped__ if torch.compiler.is_compiling() else _constants
    mean, scale = constants(preprocessing, pixels.device)
    prepared = (pixels - mean) * scale
    ordered = prepared.flip(1) if preprocessing.channel_order == "bgr" else prepared
    return ordered.contiguous(memory_format=memory_format or inference_format(pixels.device))


@cache
def _constants(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and scale `[3, 1, 1]`, sent to the device once: to send them is to wait for it."""
    mean, scale = (torch.tensor(values, device=device)[:, None, None] for values in (preprocessing.mean, preprocessing.scale))
    return mean, scale
