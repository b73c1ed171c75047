"""Export to ONNX of everything from the pixels of any photo to detections, as a file that runs without this project.

Input: `images` `[B, H, W, 3]` uint8 RGB; B, H and W may vary. Outputs, for K = `top_k` detections by falling score: `boxes`
`[B, K, 4]` float32, edges (x1, y1, x2, y2) in pixels counted from 0; `labels` `[B, K]` int64 from 0 over the classes, -1 in
unused places; `scores` `[B, K]` float32, 0 in unused places.

The file interpolates. Average photos of more than twice the network's input before, as scripts/run_onnx.py does: within the
file, averaging would cost small photos more time than their whole resize.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ssd.boxes import decode
from ssd.config.schema import PostprocessConfig
from ssd.detect import PRE_NMS_TOP_K
from ssd.model import SSD
from ssd.preprocessing import Preprocessing, normalize

OPSET = 18
INPUT = "images"  # [B, H, W, 3] uint8, RGB
OUTPUTS = ("boxes", "labels", "scores")  # [B, K, 4], [B, K], [B, K]
EXAMPLE = (2, 320, 480, 3)  # shape of an example input; the file accepts any batch, height and width
FREE = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}


class PixelsToBoxes(nn.Module):
    """Resize, preprocessing, network and decoding, in operations that ONNX has."""

    def __init__(self, model: SSD, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model.float()
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return corners in pixels `[B, P, 4]` and scores `[B, C - 1, P]` for images `[B, H, W, 3]` uint8 RGB."""
        height, width = images.shape[1], images.shape[2]
        resized = resize(images, self.model.input_size)
        loc, conf, dbox_list = self.model(normalize(resized, self.preprocessing))
        corners = decode(loc, dbox_list).clamp(0, 1)
        horizontal = torch.tensor([1.0, 0.0, 1.0, 0.0], device=images.device)
        return corners * (horizontal * width + (1 - horizontal) * height), conf.softmax(dim=2)[..., 1:].transpose(1, 2)


def resize(images: Tensor, size: int) -> Tensor:
    """Reproduce OpenCV's linear resize of 8-bit pixels, including its fixed-point arithmetic, in operations that ONNX has.

    An ordinary linear resize differs by one grey level at every eighth pixel, which changes scores by up to 0.01. The
    arithmetic uses float32, which represents integers below 2**24 exactly and divides them fastest.

    Args:
        images: `[B, H, W, 3]` uint8.
        size: S, side of the result in pixels.

    Returns:
        `[B, S, S, 3]` float32, integers 0..255.
    """
    top, bottom, weight_top, weight_bottom = _samples(images.shape[1], size, images.device)
    left, right, weight_left, weight_right = _samples(images.shape[2], size, images.device)
    rows = images.index_select(1, torch.cat([top, bottom]))  # the rest of a large photo is never converted to float32
    # Pixels and channels share an axis: ONNX Runtime is slow if weights are broadcast over a short last axis.
    across = rows.index_select(2, left).flatten(2).float() * weight_left[:, None].expand(-1, 3).flatten()
    across = across + rows.index_select(2, right).flatten(2).float() * weight_right[:, None].expand(-1, 3).flatten()
    above, below = (across * 2**-4).floor().split(size, dim=1)  # [B, S, 3 * S] each, below 2**15
    mixed = _product(above, weight_top[:, None]) + _product(below, weight_bottom[:, None])
    return ((mixed + 2) * 2**-2).floor().unflatten(2, (size, 3))


def _product(values: Tensor, weights: Tensor) -> Tensor:
    """Return the integer part of values · weights / 2**16. The product may need 26 bits; products with half the weights' bits
    fit into float32."""
    high = (weights * 2**-6).floor()
    low = weights - high * 2**6
    return ((values * high + (values * low * 2**-6).floor()) * 2**-10).floor()


def _samples(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two pixels of a row that each of `size` new pixels lies between, and their weights, which sum to 2048."""
    # Integers as far as possible: ONNX would divide two lengths in single precision.
    place = ((2 * torch.arange(size, device=device) + 1) * length).double() / (2 * size) - 0.5
    first = place.float().floor()
    part = place.float() - first
    low = first.long().clamp(min=0, max=length - 1)
    high = (first.long() + 1).clamp(min=0, max=length - 1)
    return low, high, ((1 - part) * 2048).round(), (part * 2048).round()


def metadata_of(classes: Sequence[str], options: PostprocessConfig, class_scores: np.ndarray | None = None) -> dict[str, str]:
    """Return the file's metadata: class names and thresholds as JSON, and the order of channels."""
    thresholds = {name: getattr(options, name) for name in PostprocessConfig.model_fields}
    if class_scores is not None:
        thresholds["score_thresh"] = dict(zip(classes, np.maximum(class_scores, options.score_thresh).tolist(), strict=True))
    return {"classes": json.dumps(list(classes)), "thresholds": json.dumps(thresholds), "input": "RGB"}


def input_note(model: SSD) -> dict[str, str]:
    """Return the metadata that say how far a large photo is averaged before."""
    return {"input_size": str(model.input_size)}


def network_graph(model: SSD, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the network as an ONNX graph from `images` to all_boxes `[B, P, 4]` and all_scores `[B, C - 1, P]`."""
    program = torch.onnx.export(
        PixelsToBoxes(model, preprocessing).eval(),
        (torch.zeros(EXAMPLE, dtype=torch.uint8),),
        input_names=[INPUT],
        output_names=["all_boxes", "all_scores"],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=(FREE,),
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def with_detection(
    network: onnx.ModelProto,
    classes: Sequence[str],
    options: PostprocessConfig,
    class_scores: np.ndarray | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> onnx.ModelProto:
    """Return the graph of `network_graph` with non-maximum suppression appended, and classes and thresholds in its metadata.

    Args:
        network: the graph; not changed.
        classes: names, without background.
        options: thresholds of the detections.
        class_scores: `[C - 1]`, minimum score of each class, beside that in `options`; None: no others.
        more: additional metadata.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(network)
    # At most PRE_NMS_TOP_K boxes of each class enter NMS, so no more detections can remain.
    options = options.model_copy(update={"top_k": min(options.top_k, len(classes) * PRE_NMS_TOP_K)})
    _append_nms(proto, options, class_scores)
    helper.set_model_props(proto, {**metadata_of(classes, options, class_scores), **more})
    proto.doc_string = __doc__ or ""
    return proto


def export_onnx(
    path: Path, model: SSD, preprocessing: Preprocessing, classes: Sequence[str], options: PostprocessConfig
) -> None:
    """Write an ONNX file with classes and thresholds in its metadata.

    Raises:
        OSError: the file cannot be written.
    """
    save_onnx(path, with_detection(network_graph(model, preprocessing), classes, options, more=input_note(model)))


def save_onnx(path: Path, proto: onnx.ModelProto) -> None:
    """Check a graph and write it, without the exporter's notes, which name files on this machine.

    Raises:
        OSError: the file cannot be written.
    """
    graph = proto.graph
    for noted in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


def _append_nms(proto: onnx.ModelProto, options: PostprocessConfig, class_scores: np.ndarray | None) -> None:
    """Append what `ssd.detect.detect` does to a graph that ends in all_boxes `[B, P, 4]` and all_scores `[B, C - 1, P]`."""
    graph = proto.graph

    def constant(name: str, value: Tensor) -> str:
        graph.initializer.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        graph.node.append(helper.make_node(kind, inputs, outputs, **attributes))

    zero = constant("nms_zero", torch.tensor(0.0))
    last = constant("nms_last", torch.tensor([-1]))
    # Keep at most PRE_NMS_TOP_K of each class: lower scores become 0.
    node("TopK", ["all_scores", constant("nms_candidates", torch.tensor([PRE_NMS_TOP_K]))], ["best", "best_place"], axis=2)
    node("Gather", ["best", constant("nms_least", torch.tensor([PRE_NMS_TOP_K - 1]))], ["least_of_best"], axis=2)
    node("GreaterOrEqual", ["all_scores", "least_of_best"], ["is_candidate"])
    if class_scores is not None:
        limits = torch.tensor(class_scores, dtype=torch.float32)[:, None]
        node("GreaterOrEqual", ["all_scores", constant("class_scores", limits)], ["is_enough"])
        node("And", ["is_candidate", "is_enough"], ["is_sure_candidate"])
    is_candidate = "is_candidate" if class_scores is None else "is_sure_candidate"
    node("Where", [is_candidate, "all_scores", zero], ["candidates"])
    thresholds = [
        constant("nms_most", torch.tensor([options.top_k])),
        constant("nms_thresh", torch.tensor([options.nms_thresh])),
        constant("score_thresh", torch.tensor([options.score_thresh])),
    ]
    node("NonMaxSuppression", ["all_boxes", "candidates", *thresholds], ["kept"])  # [n, 3]: image, class, box
    # Scatter the kept scores back to their places among all scores, and take the best of each image.
    node("GatherND", ["candidates", "kept"], ["kept_scores"])
    node("Shape", ["candidates"], ["shape"])
    node("ConstantOfShape", ["shape"], ["nothing"], value=numpy_helper.from_array(torch.zeros(1).numpy()))
    node("ScatterND", ["nothing", "kept", "kept_scores"], ["remaining"])
    node("Flatten", ["remaining"], ["remaining_flat"], axis=1)
    node("TopK", ["remaining_flat", "nms_most"], ["scores", "place"], axis=1)
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
        ("boxes", TensorProto.FLOAT, ["batch", options.top_k, 4]),
        ("labels", TensorProto.INT64, ["batch", options.top_k]),
        ("scores", TensorProto.FLOAT, ["batch", options.top_k]),
    ):
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
