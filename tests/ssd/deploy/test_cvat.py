"""The function for cvat-cli, called as CVAT does, with stand-ins for what it uses of CVAT's library."""

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ssd.inference.predictor import Predictor
from tests.helpers.paths import ROOT


@pytest.fixture
def function_module(monkeypatch):
    sdk = ModuleType("cvat_sdk.auto_annotation")
    sdk.__dict__.update(
        DetectionFunctionSpec=lambda labels: SimpleNamespace(labels=labels),
        label_spec=lambda name, id, **options: SimpleNamespace(name=name, id=id, **options),
        rectangle=lambda label_id, points: SimpleNamespace(label_id=label_id, points=points),
    )
    parent = ModuleType("cvat_sdk")
    parent.__dict__["auto_annotation"] = sdk
    monkeypatch.setitem(sys.modules, "cvat_sdk", parent)
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", sdk)
    yield import_module("ssd.deploy.cvat")
    sys.modules.pop("ssd.deploy.cvat")


def test_a_frame_gets_the_shapes_of_the_predictor(function_module):
    path = ROOT / "tests/photos/astronaut.jpg"
    function = function_module.create(device="cpu")
    predictor = Predictor.from_checkpoint("half", "cpu")
    assert [(label.name, label.id) for label in function.spec.labels] == [(name, i) for i, name in enumerate(predictor.classes)]
    assert {label.type for label in function.spec.labels} == {"rectangle"}
    (expected,) = predictor(path)
    with Image.open(path) as photo:
        shapes = function.detect(SimpleNamespace(conf_threshold=None), photo)
        none = function.detect(SimpleNamespace(conf_threshold=0.9999), photo)
    assert [shape.label_id for shape in shapes] == expected.labels.tolist()
    assert np.allclose([shape.points for shape in shapes], expected.boxes)
    assert not none
    assert shapes
