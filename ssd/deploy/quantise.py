"""A network in 8-bit whole numbers: onnxruntime's static quantisation, calibrated on photos, and what it costs in mAP."""

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from ssd.boxes import edges_to_voc
from ssd.deploy.export import INPUT, OUTPUTS

HEADS = ("model.loc.", "model.conf.")  # begin the names of the heads' weights


class _Photos(CalibrationDataReader):
    """Photos one by one, as onnxruntime asks for them."""

    def __init__(self, photos: Iterable[np.ndarray]) -> None:
        self.photos = iter(photos)

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        photo = next(self.photos, None)
        return None if photo is None else {INPUT: photo[None]}


def quantise(network: onnx.ModelProto, photos: Iterable[np.ndarray], with_heads: bool) -> onnx.ModelProto:
    """The network with 8-bit convolutions and poolings; what stands in front of them and behind them stays as it is.

    Weights have a scale for each output channel, and 7 bits: without VNNI a processor adds products of 8-bit ones up in 16
    bits, where they overflow. So the file gives the same on every processor.

    Args:
        network: in float32, as `ssd.deploy.export.network_graph` makes it.
        photos: that show how large the values of each map become, `[H, W, 3]` uint8 RGB.
        with_heads: whether the convolutions that predict offsets and scores are among them.
    """
    heads = [node.name for node in network.graph.node if node.op_type == "Conv" and node.input[1].startswith(HEADS)]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        source, output = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(network, source)  # a ModelProto itself would lose its weights to a file that is gone afterwards
        quant_pre_process(source, source, skip_symbolic_shape=True)
        quantize_static(
            source,
            output,
            _Photos(photos),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MaxPool"],
            nodes_to_exclude=[] if with_heads else heads,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(output)


def detections_of(program: onnx.ModelProto, photos: Iterable[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What a whole exported program finds in photos of any sizes, as `ssd.evaluation.voc_eval` takes it."""
    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    found = []
    for photo in photos:
        boxes, labels, scores = (values[0] for values in session.run(list(OUTPUTS), {INPUT: photo[None]}))  # pyright: ignore
        is_detection = labels >= 0
        found.append(
            {"boxes": edges_to_voc(boxes[is_detection]), "labels": labels[is_detection], "scores": scores[is_detection]}
        )
    return found
