"""Export of the network alone, for compilers of NPUs and other devices: fixed shapes, no loop, no non-maximum suppression.

Three files: NAME.onnx, NAME.json with all that turns its outputs into boxes, and decode_heads.py, which does that with NumPy.

Input: `images` `[N, 3, S, S]`, colours in the order of the weights. Outputs: `loc` `[N, P, 4]` offsets and `conf` `[N, P, C]`,
column 0 = background; both float32.
"""

import copy
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ssd.boxes import VARIANCES
from ssd.config.schema import PostprocessConfig
from ssd.deploy import decode_heads
from ssd.deploy.export import INPUT, OPSET, save_onnx
from ssd.detect import PRE_NMS_TOP_K
from ssd.inference.predictor import Predictor
from ssd.system.files import write_text, write_whole

OUTPUTS = ("loc", "conf")  # [N, P, 4], [N, P, C]
INPUTS = ("float32", "uint8", "normalised")  # pixels in 0..255 as floats or bytes; floats that the caller has normalised
CONFS = ("scores", "logits")  # after softmax and before


class RawOptions(NamedTuple):
    """The form of a raw network file."""

    batch: int = 1
    input: str = INPUTS[0]
    conf: str = CONFS[0]

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.input == "uint8" else torch.float32


class HardSigmoid(nn.Module):
    """A hard sigmoid in simple operators: OpenCV 5.0 takes x · HardSigmoid(y), of squeeze and excitation, for HardSwish(y)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * (1 / 6) + 0.5).clamp(0, 1)


class RawNetwork(nn.Module):
    """A predictor's network, with normalisation in front and softmax behind it if the options say so."""

    mean: Tensor
    scale: Tensor

    def __init__(self, predictor: Predictor, options: RawOptions) -> None:
        super().__init__()
        # In channels_last the exporter writes the strides of global poolings as a Gather, which OpenCV misreads.
        self.model = copy.deepcopy(predictor.model).float().to(memory_format=torch.contiguous_format)  # pyright: ignore
        for block in list(self.model.modules()):
            for name, layer in block.named_children():
                if isinstance(layer, nn.Hardsigmoid):
                    setattr(block, name, HardSigmoid())
        self.options = options
        for name, values in normalisation(predictor).items():
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return `loc` `[N, P, 4]` and `conf` `[N, P, C]` for `images` `[N, 3, S, S]`."""
        if self.options.input != "normalised":
            images = (images.float() - self.mean) * self.scale
        loc, conf, _ = self.model(images)
        return loc, conf.softmax(dim=2) if self.options.conf == "scores" else conf


def normalisation(predictor: Predictor) -> dict[str, list[float]]:
    """Return mean and scale of each channel of the network input."""
    preprocessing = predictor.preprocessing
    step = 1 if preprocessing.channel_order == "rgb" else -1
    return {name: list(getattr(preprocessing, name)[::step]) for name in ("mean", "scale")}


def raw_graph(predictor: Predictor, options: RawOptions) -> onnx.ModelProto:
    """Return the network as an ONNX graph of fixed shapes from `images` to `loc` and `conf`."""
    network, size = RawNetwork(predictor, options).eval(), predictor.model.input_size
    program = torch.onnx.export(
        network,
        (torch.zeros(options.batch, 3, size, size, dtype=options.dtype),),
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def settings_of(predictor: Predictor, options: RawOptions, limits: PostprocessConfig | None = None) -> dict[str, Any]:
    """Return the content of the JSON file: all that `decode_heads` needs.

    Args:
        predictor: with the network.
        options: the form of the file.
        limits: thresholds of the detections, by default the predictor's.
    """
    class_scores = predictor.class_scores if limits is None else np.zeros_like(predictor.class_scores)
    limits = predictor.options if limits is None else limits
    least = np.maximum(class_scores, limits.score_thresh).tolist()
    size, dboxes = predictor.model.input_size, predictor.model.dbox_list.cpu().numpy()
    return {
        "input": {
            "name": INPUT,
            "shape": [options.batch, 3, size, size],
            "dtype": "uint8" if options.input == "uint8" else "float32",
            "channel_order": predictor.preprocessing.channel_order,
            "resize": "linear, without keeping the aspect ratio; before, sides of more than twice the input are averaged",
            "normalise_before": options.input == "normalised",  # (pixel - mean) * scale; otherwise the network does it
            **normalisation(predictor),
        },
        "outputs": {
            "loc": {"shape": [options.batch, len(dboxes), 4], "kind": "offsets"},
            "conf": {"shape": [options.batch, len(dboxes), len(predictor.classes) + 1], "kind": options.conf},
        },
        "classes": list(predictor.classes),
        "variances": list(VARIANCES),
        "postprocess": {
            "score_thresh": dict(zip(predictor.classes, least, strict=True)),
            "nms_thresh": limits.nms_thresh,
            "top_k": limits.top_k,
            "pre_nms_top_k": PRE_NMS_TOP_K,
        },
        "dboxes": [[float(str(value)) for value in row] for row in dboxes],  # the digits that float32 needs; relative centres
    }


def write_raw(path: Path, graph: onnx.ModelProto, settings: Mapping[str, Any]) -> None:
    """Write the three files.

    Raises:
        OSError: one of them cannot be written.
    """
    graph.doc_string = __doc__ or ""
    save_onnx(path, graph)
    lines = [f"{json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}" for name, entry in settings.items()]
    write_text(path.with_suffix(".json"), "{{\n{}\n}}\n".format(",\n".join(lines)))
    write_whole(path.with_name("decode_heads.py"), lambda file: file.write(Path(decode_heads.__file__).read_bytes()))


def operators(graph: onnx.ModelProto) -> str:
    """Return the operators in a graph with their numbers, the most frequent first."""
    return ", ".join(f"{kind} {number}" for kind, number in Counter(node.op_type for node in graph.graph.node).most_common())
