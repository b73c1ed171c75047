"""Detections of a network in batches of pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from ssd.detect import detect
from ssd.preprocessing import Preprocessing, normalize

Network = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # images → offsets, class scores, DBoxes, as of SSD300


@dataclass(frozen=True)
class Thresholds:
    """What `ssd.detect.detect` takes beside the predictions.

    Raises:
        ValueError: one of them is out of range.
    """

    score_thresh: float = 0.01
    nms_thresh: float = 0.45
    top_k: int = 200

    def __post_init__(self) -> None:
        for name in ("score_thresh", "nms_thresh"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
        if not isinstance(self.top_k, Integral) or self.top_k < 1:
            raise ValueError(f"top_k: expected a whole number from 1 on, got {self.top_k!r}")


def predict(
    model: Network, images: Tensor, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype, limits: Thresholds
) -> list[dict[str, Tensor]]:
    """Detections in a batch of pixels `[B, 300, 300, 3]` uint8 RGB; the model has to be in evaluation mode."""
    return postprocess(forward(model, images, preprocessing, device, dtype), limits)


@torch.no_grad()
def forward(
    model: Network, images: Tensor, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return model(normalize(images, preprocessing, device))


def postprocess(outputs: tuple[Tensor, Tensor, Tensor], limits: Thresholds) -> list[dict[str, Tensor]]:
    return detect(*outputs, limits.score_thresh, limits.nms_thresh, limits.top_k)
