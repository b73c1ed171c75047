"""A raw network file has fixed shapes and simple operators, and gives what the network gives."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from ssd.architecture import ARCHITECTURES
from ssd.config.schema import PostprocessConfig
from ssd.deploy.export import save_onnx
from ssd.deploy.raw_heads import RawOptions, raw_graph, settings_of
from ssd.inference.predictor import Predictor
from ssd.model import SSD
from ssd.preprocessing import IMAGENET, normalize

# docs/export.md lists these.
COMMON = {"Conv", "Relu", "Transpose", "Reshape", "Concat", "Sub", "Mul", "Cast", "Softmax"}
OPERATORS = {
    "vgg16": COMMON | {"MaxPool", "ReduceL2", "Pow", "Sqrt", "Reciprocal", "Clip"},
    "resnet50": COMMON | {"MaxPool", "Add"},
    "mobilenet_v3_large": COMMON | {"Clip", "HardSwish", "Add", "ReduceMean"},
}


def predictor_of(name, preprocessing=IMAGENET):
    """A predictor with a narrow network whose norms fit its activations."""
    torch.manual_seed(0)
    row = ARCHITECTURES[name]
    model = SSD(4, row.batch_norms[-1], width=0.1, architecture=row).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1
    with torch.no_grad():
        model(torch.randn(4, 3, row.input_size, row.input_size))
    options = PostprocessConfig(score_thresh=0.3)
    return Predictor(
        model, ["a", "b", "c"], preprocessing, torch.device("cpu"), torch.float32, options, class_scores={"b": 0.4}
    )


def in_opencv(path, images):
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(images)
    return network.forward(["loc", "conf"])


def in_onnxruntime(path, images):
    return onnxruntime.InferenceSession(path).run(["loc", "conf"], {"images": images})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_has_fixed_shapes_and_known_operators(name, tmp_path):
    predictor = predictor_of(name)
    graph = raw_graph(predictor, RawOptions(batch=2, input="uint8"))
    save_onnx(tmp_path / "a.onnx", graph)
    size, num_dboxes = predictor.model.input_size, len(predictor.model.dbox_list)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "a.onnx"), strict_mode=True).graph
    shapes = {
        each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in (*inferred.input, *inferred.output)
    }
    assert shapes == {"images": [2, 3, size, size], "loc": [2, num_dboxes, 4], "conf": [2, num_dboxes, 4]}
    for each in inferred.value_info:
        assert all(dim.dim_value > 0 for dim in each.type.tensor_type.shape.dim), each.name
    assert {node.op_type for node in graph.graph.node} == OPERATORS[ARCHITECTURES[name].backbone.removesuffix("_reduced")]
    assert not graph.functions

    pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    with torch.no_grad():
        loc, conf, _ = predictor.model(normalize(pixels, IMAGENET))
    assert loc.std() > 0.01
    for run in (in_onnxruntime, in_opencv):
        their_loc, their_conf = run(tmp_path / "a.onnx", pixels.permute(0, 3, 1, 2).numpy().copy())
        np.testing.assert_allclose(their_loc, loc, atol=1e-3 * float(loc.abs().max()))
        np.testing.assert_allclose(their_conf, conf.softmax(dim=2), atol=1e-3)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_options_of_input_and_output(order, tmp_path):
    predictor = predictor_of("ssd300", IMAGENET._replace(channel_order=order))
    options = RawOptions(input="normalised", conf="logits")
    graph = raw_graph(predictor, options)
    save_onnx(tmp_path / "a.onnx", graph)
    assert not {"Softmax", "Cast", "Sub", "Slice"} & {node.op_type for node in graph.graph.node}
    pixels = torch.randint(0, 256, (1, 300, 300, 3), dtype=torch.uint8)
    images = normalize(pixels, predictor.preprocessing)
    with torch.no_grad():
        loc, conf, _ = predictor.model(images)
    their_loc, their_conf = in_onnxruntime(tmp_path / "a.onnx", images.numpy())
    np.testing.assert_allclose(their_loc, loc, atol=1e-3)
    np.testing.assert_allclose(their_conf, conf, atol=1e-3)
    entry = settings_of(predictor, options)["input"]
    assert (entry["channel_order"], entry["normalise_before"], entry["dtype"]) == (order, True, "float32")
    assert entry["mean"] == list(IMAGENET.mean if order == "rgb" else IMAGENET.mean[::-1])


def test_settings_hold_dboxes_and_thresholds():
    predictor = predictor_of("ssd300")
    settings = settings_of(predictor, RawOptions(batch=4))
    np.testing.assert_array_equal(np.float32(settings["dboxes"]), predictor.model.dbox_list)
    assert settings["input"]["shape"] == [4, 3, 300, 300]
    assert settings["outputs"]["conf"] == {"shape": [4, 8732, 4], "kind": "scores"}
    limits = {"nms_thresh": 0.45, "top_k": 200, "pre_nms_top_k": 400}
    assert settings["postprocess"] == {"score_thresh": {"a": 0.3, "b": 0.4, "c": 0.3}, **limits}
    all_classes = settings_of(predictor, RawOptions(), PostprocessConfig(score_thresh=0.01))
    assert set(all_classes["postprocess"]["score_thresh"].values()) == {0.01}
