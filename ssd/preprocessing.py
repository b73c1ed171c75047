"""Image preprocessing, defined once and stored in every checkpoint: from pixels of a photo to network input."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, Self, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

Length = TypeVar("Length", int, np.ndarray)


class Preprocessing(NamedTuple):
    """The colours that weights were trained with. Means and scales are per channel, in the order R, G, B.

    The size of the input belongs to the architecture.
    """

    mean: tuple[float, float, float]  # subtracted from pixels in 0..255
    scale: tuple[float, float, float]  # factor on the difference
    channel_order: str = "rgb"  # rgb | bgr: channels of the network input

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean as a colour (R, G, B), which the network sees as 0; expansion fills the canvas with it."""
        red, green, blue = (round(value) for value in self.mean)
        return red, green, blue

    def to_plain(self) -> dict[str, object]:
        """Return plain values for a checkpoint."""
        return self._asdict()

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Return the preprocessing in a checkpoint; older ones also have the size of the input."""
        return cls(**{name: value for name, value in values.items() if name != "size"})


# torchvision's ImageNet weights: pixels in 0..1, normalised.
IMAGENET = Preprocessing(mean=(123.675, 116.28, 103.53), scale=(1 / 58.395, 1 / 57.12, 1 / 57.375))
# Caffe's VGG16, in ports that converted its first layer to RGB: subtract the mean.
CAFFE = Preprocessing(mean=(123.0, 117.0, 104.0), scale=(1.0, 1.0, 1.0))

# The original weights of VGG16 (Oxford), with the first layer converted to RGB: subtract the mean.
OXFORD = Preprocessing(mean=(123.68, 116.779, 103.939), scale=(1.0, 1.0, 1.0))


def to_input_size(image: np.ndarray, size: int) -> np.ndarray:
    """Resize a photo `[H, W, 3]` uint8 to the network's input `[size, size, 3]`, for evaluation and prediction."""
    return resize(shrink(image, size), size, size)


def reduction(length: int, size: int) -> int:
    """Return by how much a photo is reduced before it is interpolated, in one direction: the smallest power of two that leaves
    at most twice the network's input.

    Interpolation looks at two to eight pixels for each new one. From a photo of more than twice as many pixels, it would miss
    some: fine patterns would flicker or turn into coarse ones.

    Args:
        length: pixels of the photo that are shown.
        size: side of the network's input, pixels.
    """
    factor = 1
    while length > 2 * factor * size:
        factor *= 2
    return factor


def reduced(length: Length, factor: Length) -> Length:
    """Return the length of a side after its reduction by a factor, pixels."""
    return (length + factor // 2) // factor


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Reduce a photo `[H, W, 3]` uint8 in each direction that has more than twice `size` pixels: each new pixel is the mean of
    those it replaces. A photo that is read at a reduced scale (`ssd.system.images`) is nearly the same."""
    height, width = (reduced(length, reduction(length, size)) for length in image.shape[:2])
    return image if image.shape[:2] == (height, width) else resize(image, width, height, cv2.INTER_AREA)


def resize(image: np.ndarray, width: int, height: int, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Resize a photo `[H, W, 3]` uint8 without keeping the aspect ratio.

    Training draws the interpolation (`data.transforms`); evaluation and prediction interpolate linearly. Lanczos is twice as
    fast on floats as on bytes, with the same result up to rounding.
    """
    if interpolation != cv2.INTER_LANCZOS4:
        return cv2.resize(image, (width, height), interpolation=interpolation)
    resized = cv2.resize(image.astype(np.float32), (width, height), interpolation=interpolation)
    return cv2.add(resized, 0.0, dtype=cv2.CV_8U)  # rounds and clips  # pyright: ignore[reportCallIssue, reportArgumentType]


def normalize(
    images: Tensor,
    preprocessing: Preprocessing,
    device: torch.device | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Convert pixels to network input on the device, so that only bytes are transferred.

    Args:
        images: `[B, H, W, 3]` uint8, RGB.
        preprocessing: the preprocessing of the weights.
        device: device of the result; by default that of `images`.
        memory_format: format of the result, and so of all activations.

    Returns:
        `[B, 3, H, W]` float32.
    """
    # An Apple GPU could read the memory after it was freed.
    is_cuda = device is not None and device.type == "cuda"
    pixels = images.to(device, non_blocking=is_cuda).permute(0, 3, 1, 2).float()
    # Tensors created during compilation or export must not be cached.
    constants = _constants.__wrapped__ if torch.compiler.is_compiling() else _constants
    mean, scale = constants(preprocessing, pixels.device)
    prepared = (pixels - mean) * scale
    ordered = prepared.flip(1) if preprocessing.channel_order == "bgr" else prepared
    return ordered.contiguous(memory_format=memory_format)


@cache
def _constants(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and scale `[3, 1, 1]`, sent to each device once, since sending waits for it."""
    mean, scale = (torch.tensor(values, device=device)[:, None, None] for values in (preprocessing.mean, preprocessing.scale))
    return mean, scale
