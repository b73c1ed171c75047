"""The network as ONNX, with all that surrounds it: pixels of any photo in, detections out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ssd.boxes import decode
from ssd.detect import CANDIDATES
from ssd.evaluation import Thresholds
from ssd.model import SSD300
from ssd.preparation import Preparation, prepare

OPSET = 18
INPUT = "images"  # [B, H, W, 3] uint8, RGB
OUTPUTS = ("boxes", "labels", "scores")  # [B, K, 4], [B, K], [B, K]


class PixelsToBoxes(nn.Module):
    """Everything in front of non-maximum suppression, in operations that ONNX has.

    Args:
        model: the network.
        preparation: what its weights expect of images.
    """

    def __init__(self, model: SSD300, preparation: Preparation) -> None:
        super().__init__()
        self.model = model.float()
        self.preparation = preparation

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels `[B, H, W, 3]` uint8 RGB → corners in them `[B, P, 4]` and scores `[B, C - 1, P]`."""
        height, width = images.shape[1], images.shape[2]
        resized = resize(images, self.preparation.size)
        loc, conf, dbox_list = self.model(prepare(resized, self.preparation))
        corners = decode(loc, dbox_list).clamp(0, 1)
        scale = torch.tensor([1.0, 0.0, 1.0, 0.0]) * width + torch.tensor([0.0, 1.0, 0.0, 1.0]) * height
        return corners * scale, conf.softmax(dim=2)[..., 1:].transpose(1, 2)


def resize(images: Tensor, size: int) -> Tensor:
    """OpenCV's linear resize of 8-bit pixels, step for step in its fixed-point numbers, in operations that ONNX has.

    An ordinary linear resize differs by one grey level at every eighth pixel, which moves scores by up to a hundredth.

    Args:
        images: `[B, H, W, 3]` uint8.
        size: S, pixels a side of the result.

    Returns:
        `[B, S, S, 3]` int32, 0..255.
    """
    left, right, weight_left, weight_right = _samples(images.shape[2], size)
    rows = images.index_select(2, left).int() * weight_left[:, None]
    rows = torch.div(rows + images.index_select(2, right).int() * weight_right[:, None], 2**4, rounding_mode="trunc")
    top, bottom, weight_top, weight_bottom = _samples(images.shape[1], size)
    above = torch.div(rows.index_select(1, top) * weight_top[:, None, None], 2**16, rounding_mode="trunc")
    below = torch.div(rows.index_select(1, bottom) * weight_bottom[:, None, None], 2**16, rounding_mode="trunc")
    return torch.div(above + below + 2, 2**2, rounding_mode="trunc")


def _samples(length: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels of a row that each of `size` new pixels lies between, and their weights, which sum up to 2048."""
    # In whole numbers as far as possible: ONNX would divide two lengths in single precision.
    place = ((2 * torch.arange(size) + 1) * length).double() / (2 * size) - 0.5
    first = place.float().floor()
    part = place.float() - first
    low = first.long().clamp(min=0, max=length - 1)
    high = (first.long() + 1).clamp(min=0, max=length - 1)
    return low, high, ((1 - part) * 2048).round().int(), (part * 2048).round().int()


def export_onnx(path: Path, model: SSD300, preparation: Preparation, classes: Sequence[str], limits: Thresholds) -> None:
    """Writes an ONNX file that takes a batch of photos of one size and gives their detections.

    Input: `images` `[B, H, W, 3]` uint8 RGB; B, H and W are free. Outputs, K = `limits.top_k` an image, the surest first:
    `boxes` `[B, K, 4]` float32, edges (x1, y1, x2, y2) in pixels counted from 0; `labels` `[B, K]` int64 from 0 over the
    classes, -1 where there is no further detection; `scores` `[B, K]` float32, 0 there. Classes and thresholds stand in the
    file's metadata.

    Raises:
        OSError: the file cannot be written.
    """
    network = PixelsToBoxes(model, preparation).eval()
    example = torch.zeros(2, 320, 480, 3, dtype=torch.uint8)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    program = torch.onnx.export(
        network,
        (example,),
        input_names=[INPUT],
        output_names=["all_boxes", "all_scores"],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=(free,),
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    _append_nms(proto, limits)
    helper.set_model_props(
        proto, {"classes": json.dumps(list(classes)), "thresholds": json.dumps(vars(limits)), "input": "RGB"}
    )
    proto.doc_string = export_onnx.__doc__ or ""
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


def _append_nms(proto: onnx.ModelProto, limits: Thresholds) -> None:
    """Adds to a graph that ends in all_boxes `[B, P, 4]` and all_scores `[B, C - 1, P]` what `ssd.detect.detect` does."""
    graph = proto.graph

    def constant(name: str, value: Tensor) -> str:
        graph.initializer.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        graph.node.append(helper.make_node(kind, inputs, outputs, **attributes))

    zero = constant("nms_zero", torch.tensor(0.0))
    last = constant("nms_last", torch.tensor([-1]))
    # At most CANDIDATES a class go on: scores below the last of them become 0.
    node("TopK", ["all_scores", constant("nms_candidates", torch.tensor([CANDIDATES]))], ["best", "best_place"], axis=2)
    node("Gather", ["best", constant("nms_least", torch.tensor([CANDIDATES - 1]))], ["least_of_best"], axis=2)
    node("GreaterOrEqual", ["all_scores", "least_of_best"], ["is_candidate"])
    node("Where", ["is_candidate", "all_scores", zero], ["candidates"])
    thresholds = [
        constant("nms_most", torch.tensor([limits.top_k])),
        constant("nms_thresh", torch.tensor([limits.nms_thresh])),
        constant("score_thresh", torch.tensor([limits.score_thresh])),
    ]
    node("NonMaxSuppression", ["all_boxes", "candidates", *thresholds], ["kept"])  # [n, 3]: image, class, box
    # What is left goes back to where it was among all scores, and the best of an image are taken from there.
    node("GatherND", ["candidates", "kept"], ["kept_scores"])
    node("Shape", ["candidates"], ["shape"])
    node("ConstantOfShape", ["shape"], ["nothing"], value=numpy_helper.from_array(torch.zeros(1).numpy()))
    node("ScatterND", ["nothing", "kept", "kept_scores"], ["left"])
    node("Flatten", ["left"], ["left_flat"], axis=1)
    node("TopK", ["left_flat", "nms_most"], ["scores", "place"], axis=1)
    node("Gather", ["shape", constant("nms_axis", torch.tensor([2]))], ["num_boxes"], axis=0)
    node("Div", ["place", "num_boxes"], ["place_label"])
    node("Mod", ["place", "num_boxes"], ["place_box"])
    node("Greater", ["scores", zero], ["is_detection"])
    node("Where", ["is_detection", "place_label", last], ["labels"])
    node("Unsqueeze", ["place_box", last], ["place_box_column"])
    node("GatherND", ["all_boxes", "place_box_column"], ["boxes_there"], batch_dims=1)
    node("Cast", ["is_detection"], ["is_detection_float"], to=TensorProto.FLOAT)
    node("Unsqueeze", ["is_detection_float", last], ["is_detection_column"])
    node("Mul", ["boxes_there", "is_detection_column"], ["boxes"])
    del graph.output[:]
    for name, kind, shape in (
        ("boxes", TensorProto.FLOAT, ["batch", limits.top_k, 4]),
        ("labels", TensorProto.INT64, ["batch", limits.top_k]),
        ("scores", TensorProto.FLOAT, ["batch", limits.top_k]),
    ):
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
