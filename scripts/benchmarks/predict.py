"""Benchmark of inference: from pixels to detections."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn
from torchvision.models.detection import ssd as torchvision_ssd

from scripts.benchmarks import networks
from scripts.benchmarks.measuring import OURS, Row, Runs, Setting, measure, real_batch, rows
from scripts.benchmarks.networks import Variant, conv_inputs, our_network, peer_variants, torchvision_network
from ssd.config.schema import PostprocessConfig
from ssd.deploy.export import INPUT, export_onnx
from ssd.inference.predictor import Predictor, for_inference
from ssd.model import SSD
from ssd.preprocessing import IMAGENET

OPTIONS = PostprocessConfig(score_thresh=0.5)  # no detection passes with random weights; case `detect` measures the rest


def bench_predict(setting: Setting, batch_size: int) -> list[Row]:
    """Measure from 300 × 300 pixels to detections, with random weights: `Predictor`, torchvision in each precision and memory
    format, and the exported file in onnxruntime and, if installed, OpenVINO. Floor: the forward pass of the convolutions."""
    images = real_batch(setting.photos, batch_size).images
    model, pixels = our_network().eval(), list(images.numpy())
    classes = [str(number) for number in range(networks.NUM_CLASSES)]

    def ours(dtype: torch.dtype, compile: bool = False) -> Callable[[], object]:
        predictor = Predictor(model, classes, IMAGENET, setting.device, dtype, OPTIONS, compile=compile)
        return lambda: predictor.detect(pixels, batch_size)

    runs: Runs = {"floor: convolutions alone": convolutions(setting, model, batch_size), OURS: ours(setting.dtype)}
    if setting.dtype != torch.float32:
        runs["ours, float32"] = ours(torch.float32)
    if setting.compiled:
        runs["ours, compiled"] = ours(setting.dtype, compile=True)
    for variant in peer_variants(setting.dtype):
        runs[variant.name] = torchvision_inference(setting, images, torchvision_network(), variant)
    if setting.device.type == "cpu":
        runs |= exported(model, classes, images.numpy())
    return rows(f"predict, batch {batch_size}", batch_size, "images/s", measure(runs, setting))


def torchvision_inference(
    setting: Setting, images: torch.Tensor, model: torchvision_ssd.SSD, variant: Variant
) -> Callable[[], object]:
    model.to(setting.device).eval()
    model.score_thresh = OPTIONS.score_thresh
    model.to(memory_format=variant.memory_format)  # pyright: ignore[reportCallIssue]

    @torch.inference_mode()
    def run() -> object:
        photos = list(images.permute(0, 3, 1, 2).to(setting.device).float().div(255))
        with variant.autocast(setting.device):
            return model(photos)

    return run


def exported(model: SSD, classes: list[str], images: np.ndarray) -> Runs:
    """Export a network to ONNX, and return its runs in other libraries."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(path, model, IMAGENET, classes, OPTIONS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        runs: Runs = {"onnxruntime, float32": lambda: session.run(None, {INPUT: images})}
        if importlib.util.find_spec("openvino"):
            import openvino

            settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
            network = openvino.Core().compile_model(path, "CPU", settings)
            runs["OpenVINO, its own precision"] = lambda: network(images)
    return runs


def convolutions(setting: Setting, model: SSD, batch_size: int) -> Callable[[], None]:
    """Run every convolution of the network on an input of its shape, with nothing in between."""
    layers: list[tuple[nn.Conv2d, torch.Tensor]] = []
    for conv, shape in conv_inputs(for_inference(model, setting.dtype)):
        x = torch.randn(batch_size, *shape, device=setting.device, dtype=setting.dtype)
        layers.append((conv.to(setting.device), x.to(memory_format=torch.channels_last)))

    @torch.inference_mode()
    def run() -> None:
        for conv, x in layers:
            conv(x)

    return run
