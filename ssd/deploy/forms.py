"""The two forms of an exported network: complete, from pixels to detections, and raw, for compilers of NPUs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from ssd.config.schema import PostprocessConfig
from ssd.deploy import decode_heads
from ssd.deploy.export import input_note, network_graph, save_onnx, with_detection
from ssd.deploy.program import Program, load_program, program_of, raw_program_of
from ssd.deploy.raw_heads import RawOptions, operators, raw_graph, settings_of, write_raw
from ssd.inference.predictor import Predictor
from ssd.preprocessing import shrink


class Form(Protocol):
    """How a network is exported, run and written."""

    def graph(self) -> onnx.ModelProto:
        """Return the network in float32, ready for `ssd.deploy.quantise`."""
        ...

    def batch(self, photo: np.ndarray) -> np.ndarray:
        """Return the input of the graph for a photo `[H, W, 3]` uint8 RGB."""
        ...

    def program(self, graph: onnx.ModelProto, limits: PostprocessConfig) -> Program:
        """Return a graph as a function from pixels to detections."""
        ...

    def write(self, path: Path, graph: onnx.ModelProto, notes: Mapping[str, Any]) -> None:
        """Write a graph with the predictor's thresholds and additional notes.

        Raises:
            OSError: the file cannot be written.
        """
        ...

    def load(self, path: Path) -> Program:
        """Return a written file as a function."""
        ...

    def describe(self, path: Path, graph: onnx.ModelProto) -> str:
        """Return what a user should know of a written file."""
        ...


class CompleteForm:
    """One ONNX file from the pixels of any photo to detections (`ssd.deploy.export`)."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def graph(self) -> onnx.ModelProto:
        return network_graph(self.predictor.model, self.predictor.preprocessing)

    def batch(self, photo: np.ndarray) -> np.ndarray:
        return shrink(photo, self.predictor.model.input_size)[None]

    def program(self, graph: onnx.ModelProto, limits: PostprocessConfig) -> Program:
        return program_of(with_detection(graph, self.predictor.classes, limits, more=input_note(self.predictor.model)))

    def write(self, path: Path, graph: onnx.ModelProto, notes: Mapping[str, Any]) -> None:
        predictor = self.predictor
        metadata = {**input_note(predictor.model), **{name: json.dumps(note) for name, note in notes.items()}}
        class_scores = predictor.class_scores if predictor.class_scores.any() else None
        save_onnx(path, with_detection(graph, predictor.classes, predictor.options, class_scores, metadata))

    def load(self, path: Path) -> Program:
        return load_program(path)[0]

    def describe(self, path: Path, graph: onnx.ModelProto) -> str:
        return ""


class RawForm:
    """The network alone with fixed shapes, and what decodes its outputs (`ssd.deploy.raw_heads`)."""

    def __init__(self, predictor: Predictor, options: RawOptions) -> None:
        self.predictor = predictor
        self.options = options
        self.settings = settings_of(predictor, options)

    def graph(self) -> onnx.ModelProto:
        return raw_graph(self.predictor, self.options)

    def batch(self, photo: np.ndarray) -> np.ndarray:
        return decode_heads.prepare([photo] * self.options.batch, self.settings)

    def program(self, graph: onnx.ModelProto, limits: PostprocessConfig) -> Program:
        return raw_program_of(graph, settings_of(self.predictor, self.options, limits))

    def write(self, path: Path, graph: onnx.ModelProto, notes: Mapping[str, Any]) -> None:
        write_raw(path, graph, {**notes, **self.settings})

    def load(self, path: Path) -> Program:
        return raw_program_of(onnx.load(path), decode_heads.load(str(path.with_suffix(".json"))))

    def describe(self, path: Path, graph: onnx.ModelProto) -> str:
        return f"beside it: {path.with_suffix('.json').name}, decode_heads.py; operators: {operators(graph)}"
