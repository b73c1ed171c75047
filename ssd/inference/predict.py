"""From a batch of pixels to detections: preprocessing, network, postprocessing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd.config.schema import PostprocessConfig
from ssd.detect import detect
from ssd.preprocessing import Preprocessing, normalize
from ssd.system.device import inference_format

Outputs = tuple[Tensor, Tensor, Tensor]  # offsets, class scores and DBoxes, as `SSD` returns them


class Detections(NamedTuple):
    """The detections in one photo, by falling score.

    `ssd.detect.detect` returns dicts with boxes relative to the network's input; `ssd.inference.merge.merge` turns those of all
    crops of a photo into this type.
    """

    boxes: np.ndarray  # [n, 4] float32: edges (x1, y1, x2, y2) in the photo's pixels, counted from 0
    labels: np.ndarray  # [n] int64, from 0 over the class names
    scores: np.ndarray  # [n] float32, 0..1
    names: Sequence[str] = ()  # n class names; only `Predictor` fills them in


@dataclass(frozen=True)
class PixelModel:
    """A network in evaluation mode that takes pixels.

    Args:
        network: images → offsets, class scores and DBoxes.
        preprocessing: of its input.
        device: of the network.
        dtype: of its activations.
    """

    network: Callable[[Tensor], Outputs]
    preprocessing: Preprocessing
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Return the raw predictions for pixels `[B, S, S, 3]` uint8 RGB."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(normalize(images, self.preprocessing, self.device, inference_format(self.device)))


def predict(model: PixelModel, images: Tensor, options: PostprocessConfig) -> list[dict[str, Tensor]]:
    """Return the detections in pixels `[B, S, S, 3]` uint8 RGB, as `ssd.detect.detect` does."""
    return postprocess(model(images), options)


def postprocess(outputs: Outputs, options: PostprocessConfig) -> list[dict[str, Tensor]]:
    return detect(*outputs, options.score_thresh, options.nms_thresh, options.top_k)
