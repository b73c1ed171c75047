"""INT8 networks by onnxruntime's static quantisation, calibrated on photos."""

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from ssd.deploy.export import INPUT, OUTPUTS
from ssd.deploy.program import real_detections
from ssd.inference.predict import Detections

HEADS = ("model.loc.", "model.conf.")  # prefixes of the names of the heads' weights


class _Photos(CalibrationDataReader):
    """Photos in onnxruntime's interface for calibration."""

    def __init__(self, photos: Iterable[np.ndarray]) -> None:
        self.photos = iter(photos)

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        photo = next(self.photos, None)
        return None if photo is None else {INPUT: photo[None]}


def quantise(network: onnx.ModelProto, photos: Iterable[np.ndarray], with_heads: bool) -> onnx.ModelProto:
    """Return the network with 8-bit convolutions and poolings; all other operations stay in float32.

    Weights have a scale for each output channel, and 7 bits: CPUs without VNNI sum products of 8-bit weights in 16 bits, which
    overflow. The file therefore returns the same on every CPU.

    Args:
        network: in float32, as `ssd.deploy.export.network_graph` returns it.
        photos: to calibrate the ranges of the feature maps, `[H, W, 3]` uint8 RGB.
        with_heads: whether to quantise the convolutions that predict offsets and scores.
    """
    heads = [node.name for node in network.graph.node if node.op_type == "Conv" and node.input[1].startswith(HEADS)]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        source, output = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(network, source)  # given a ModelProto, it would move the weights to a temporary file
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


def detections_of(program: onnx.ModelProto, photos: Iterable[np.ndarray]) -> list[Detections]:
    """Return the detections of a complete exported program in photos of any sizes."""
    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    return [real_detections(session.run(list(OUTPUTS), {INPUT: photo[None]})) for photo in photos]  # pyright: ignore
