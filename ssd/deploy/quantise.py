"""INT8 networks by onnxruntime's static quantisation, calibrated on photos."""

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from ssd.deploy.export import INPUT

HEADS = ("model.loc.", "model.conf.")  # prefixes of the names of the heads' weights


class _Inputs(CalibrationDataReader):
    """Inputs of a network in onnxruntime's interface for calibration."""

    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def quantise(network: onnx.ModelProto, batches: Iterable[np.ndarray], with_heads: bool) -> onnx.ModelProto:
    """Return the network with 8-bit convolutions and poolings; all other operations stay in float32.

    Weights have a scale for each output channel, and 7 bits: CPUs without VNNI sum products of 8-bit weights in 16 bits, which
    overflow. The file therefore returns the same on every CPU.

    Args:
        network: in float32, as `ssd.deploy.export.network_graph` or `ssd.deploy.raw_heads.raw_graph` returns it.
        batches: inputs of the network, to calibrate the ranges of the feature maps.
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
            _Inputs(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MaxPool"],
            nodes_to_exclude=[] if with_heads else heads,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(output)
