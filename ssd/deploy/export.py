"""The network with all that surrounds it, pixels of any photo in and detections out, as a file that runs without this project:
ONNX, or a program of torch.export.

The interface is the same for both. In: `images` `[B, H, W, 3]` uint8 RGB; B, H and W are free. Out, K = `limits.top_k` an
image, by falling score: `boxes` `[B, K, 4]` float32, edges (x1, y1, x2, y2) in pixels counted from 0; `labels` `[B, K]` int64
from 0 over the classes, -1 where there is no further detection; `scores` `[B, K]` float32, 0 there.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torchvision.ops import nms

from ssd.boxes import decode
from ssd.detect import CANDIDATES
from ssd.inference.predict import Thresholds
from ssd.model import SSD300
from ssd.preprocessing import Preprocessing, normalize

OPSET = 18
INPUT = "images"  # [B, H, W, 3] uint8, RGB
OUTPUTS = ("boxes", "labels", "scores")  # [B, K, 4], [B, K], [B, K]
EXAMPLE = (2, 320, 480, 3)  # of an input; no number of it is kept
FREE = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}


class PixelsToBoxes(nn.Module):
    """Everything in front of non-maximum suppression, in operations that ONNX has.

    Args:
        model: the network.
        preprocessing: what its weights expect of images.
    """

    def __init__(self, model: SSD300, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model.float()
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels `[B, H, W, 3]` uint8 RGB → corners in them `[B, P, 4]` and scores `[B, C - 1, P]`."""
        height, width = images.shape[1], images.shape[2]
        resized = resize(images, self.preprocessing.size)
        loc, conf, dbox_list = self.model(normalize(resized, self.preprocessing))
        corners = decode(loc, dbox_list).clamp(0, 1)
        horizontal = torch.tensor([1.0, 0.0, 1.0, 0.0], device=images.device)
        return corners * (horizontal * width + (1 - horizontal) * height), conf.softmax(dim=2)[..., 1:].transpose(1, 2)


def resize(images: Tensor, size: int) -> Tensor:
    """OpenCV's linear resize of 8-bit pixels, step for step in its fixed-point numbers, in operations that ONNX has.

    An ordinary linear resize differs by one grey level at every eighth pixel, which moves scores by up to a hundredth. Whole
    numbers are kept in float32, which holds those below 2**24 and divides them fastest.

    Args:
        images: `[B, H, W, 3]` uint8.
        size: S, pixels a side of the result.

    Returns:
        `[B, S, S, 3]` float32, whole numbers 0..255.
    """
    top, bottom, weight_top, weight_bottom = _samples(images.shape[1], size, images.device)
    left, right, weight_left, weight_right = _samples(images.shape[2], size, images.device)
    rows = images.index_select(1, torch.cat([top, bottom]))  # no more of a large photo is ever made float32
    # Pixels and channels on one axis: ONNX Runtime is slow where weights go with a short last axis.
    across = rows.index_select(2, left).flatten(2).float() * weight_left[:, None].expand(-1, 3).flatten()
    across = across + rows.index_select(2, right).flatten(2).float() * weight_right[:, None].expand(-1, 3).flatten()
    above, below = (across * 2**-4).floor().split(size, dim=1)  # [B, S, 3 * S] each, below 2**15
    mixed = _product(above, weight_top[:, None]) + _product(below, weight_bottom[:, None])
    return ((mixed + 2) * 2**-2).floor().unflatten(2, (size, 3))


def _product(values: Tensor, weights: Tensor) -> Tensor:
    """The whole part of values · weights / 2**16. The product may need 26 bits, those of the weights' two halves do not."""
    high = (weights * 2**-6).floor()
    low = weights - high * 2**6
    return ((values * high + (values * low * 2**-6).floor()) * 2**-10).floor()


def _samples(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels of a row that each of `size` new pixels lies between, and their weights, float32 that sum up to 2048."""
    # In whole numbers as far as possible: ONNX would divide two lengths in single precision.
    place = ((2 * torch.arange(size, device=device) + 1) * length).double() / (2 * size) - 0.5
    first = place.float().floor()
    part = place.float() - first
    low = first.long().clamp(min=0, max=length - 1)
    high = (first.long() + 1).clamp(min=0, max=length - 1)
    return low, high, ((1 - part) * 2048).round(), (part * 2048).round()


class PixelsToDetections(nn.Module):
    """Everything, in PyTorch's operations.

    Args:
        model: the network.
        preprocessing: what its weights expect of images.
        limits: thresholds of the detections.
    """

    def __init__(self, model: SSD300, preprocessing: Preprocessing, limits: Thresholds) -> None:
        super().__init__()
        self.boxes = PixelsToBoxes(model, preprocessing)
        self.limits = limits

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels → `boxes`, `labels` and `scores`, as at the head of this module."""
        boxes, scores = self.boxes(images)  # [B, P, 4], [B, C - 1, P]
        candidates, dbox = scores.topk(CANDIDATES, dim=2)  # [B, C - 1, CANDIDATES] each
        image, label, rank = torch.nonzero(candidates > self.limits.score_thresh, as_tuple=True)  # [n] each
        # One call settles all images and classes, laid side by side; in double precision, which keeps them as exact there.
        aside = (image * scores.shape[1] + label) * (images.shape[1] + images.shape[2])
        apart = boxes[image, dbox[image, label, rank]].double() + aside[:, None]
        # torch.export takes nms to keep two boxes at least: two that are always kept, far from all others and of score 0, go in
        # with them, and as the last ones out again.
        spare = apart.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
        least = apart.new_zeros(2)
        ranked = torch.cat([candidates[image, label, rank].double(), least])
        kept = nms(torch.cat([apart, spare]), ranked, self.limits.nms_thresh)[:-2]
        kept = (image[kept], label[kept], rank[kept])
        left = torch.zeros_like(candidates).index_put(kept, candidates[kept])
        scores, place = left.flatten(1).topk(self.limits.top_k, dim=1)  # [B, K] each
        is_detection = scores > 0
        labels = torch.where(is_detection, place // CANDIDATES, -1)
        dbox = dbox.flatten(1).gather(1, place)[..., None].expand(-1, -1, 4)
        return boxes.gather(1, dbox) * is_detection[..., None], labels, scores


def reachable(limits: Thresholds, num_classes: int) -> Thresholds:
    """The thresholds with no more detections than can be left: at most CANDIDATES a class enter NMS."""
    return replace(limits, top_k=min(limits.top_k, num_classes * CANDIDATES))


def metadata_of(classes: Sequence[str], limits: Thresholds) -> dict[str, str]:
    """What travels with the file: class names and thresholds as JSON, and the order of channels."""
    return {"classes": json.dumps(list(classes)), "thresholds": json.dumps(vars(limits)), "input": "RGB"}


def export_torch(path: Path, model: SSD300, preprocessing: Preprocessing, classes: Sequence[str], limits: Thresholds) -> None:
    """Writes a program of torch.export. Classes and thresholds are in `metadata.json` among its extra files.

    Raises:
        OSError: the file cannot be written.
    """
    limits = reachable(limits, len(classes))
    network = PixelsToDetections(model, preprocessing, limits).eval()
    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue] # other layouts are saved with a warning
    example = torch.zeros(EXAMPLE, dtype=torch.uint8, device=model.dbox_list.device)
    metadata = metadata_of(classes, limits)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)  # within torchvision
        program = torch.export.export(network, (example,), dynamic_shapes=(FREE,))
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})


def network_graph(model: SSD300, preprocessing: Preprocessing) -> onnx.ModelProto:
    """The network as an ONNX graph from `images` to all_boxes `[B, P, 4]` and all_scores `[B, C - 1, P]`."""
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
    network: onnx.ModelProto, classes: Sequence[str], limits: Thresholds, more: Mapping[str, str] = MappingProxyType({})
) -> onnx.ModelProto:
    """What `network_graph` made, with non-maximum suppression behind it; classes and thresholds in its metadata.

    Args:
        network: left as it is.
        classes: names, without background.
        limits: thresholds of the detections.
        more: metadata beside these.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(network)
    limits = reachable(limits, len(classes))
    _append_nms(proto, limits)
    helper.set_model_props(proto, {**metadata_of(classes, limits), **more})
    proto.doc_string = __doc__ or ""
    return proto


def export_onnx(path: Path, model: SSD300, preprocessing: Preprocessing, classes: Sequence[str], limits: Thresholds) -> None:
    """Writes an ONNX file. Classes and thresholds are in its metadata.

    Raises:
        OSError: the file cannot be written.
    """
    save_onnx(path, with_detection(network_graph(model, preprocessing), classes, limits))


def save_onnx(path: Path, proto: onnx.ModelProto) -> None:
    """
    Raises:
        OSError: the file cannot be written.
    """
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
    # At most CANDIDATES a class are kept: scores below the last of them become 0.
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
