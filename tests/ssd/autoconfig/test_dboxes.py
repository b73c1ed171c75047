"""Choosing DBoxes by their coverage of the objects."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from data.dataset.annotations import Annotations
from ssd.architecture import ARCHITECTURES
from ssd.autoconfig import dboxes
from ssd.autoconfig.proposal import render
from ssd.autoconfig.recipes import Setting
from ssd.config.schema import ModelConfig
from ssd.dbox import SSD300_VOC, spec_of
from tests.helpers.annotations import blank, square_objects


def test_coverage_weights_all_classes_equally():
    large, small = square_objects(150, 90), square_objects(17, 10)
    together = Annotations.join([large, replace(small, labels=np.ones(10, np.int64))])
    together = replace(together, classes=("a", "b"))
    shares = dboxes.dbox_coverages(together)
    assert shares["voc"] == dboxes.dbox_coverages(large)["voc"] / 2
    assert dboxes.choose_dboxes(shares, "voc").value == "coco"


def test_the_choice_depends_on_object_sizes():
    """Squares of 17 pixels overlap a DBox by 17² / 21² = 0.66 at best with coco, by 17² / 30² = 0.32 with voc."""
    small, large = dboxes.dbox_coverages(square_objects(17)), dboxes.dbox_coverages(square_objects(150))
    assert small["voc"] == 0
    assert small["coco"] > 0.3
    assert dboxes.choose_dboxes(small, None).value == "coco"
    assert dboxes.choose_dboxes(large, None).value == "voc"
    assert dboxes.choose_dboxes({"voc": 0.981, "coco": 0.984}, None).value == "voc"  # no difference
    assert f"coco {small['coco']:.1%}" in dboxes.choose_dboxes(small, None).reason
    assert dboxes.choose_dboxes({"voc": 0.99, "coco": 0.95}, "coco").value == "coco"  # the weights were trained for them
    assert dboxes.choose_dboxes({"voc": 0.54, "coco": 0.98}, "voc").value == "coco"
    assert dboxes.choose_dboxes({"voc": 0.5, "coco": 0.6, "fitted": 0.64}, None).value == "coco"
    assert dboxes.choose_dboxes({"voc": 0.5, "coco": 0.6, "fitted": 0.66}, "coco").value == "fitted"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dboxes_are_fitted_only_for_a_large_gain(name):
    row = ARCHITECTURES[name]
    assert dboxes.fitted_dboxes(square_objects(150), {"voc": 0.96, "coco": 0.9}, row) is None
    small = square_objects(10 if name == "ssd300" else 6)  # of 300 pixels; SSD512's smallest DBoxes cover 10
    fitted = dboxes.fitted_dboxes(small, dboxes.dbox_coverages(small, row), row)
    assert fitted
    settings = {"architecture": Setting(name), "pretrained": Setting("none"), "dboxes": Setting(fitted.to_plain(), "why")}
    model = ModelConfig.model_validate(
        yaml.safe_load(render({f"model.{key}": entry for key, entry in settings.items()}))["model"]
    )
    assert spec_of(model.dboxes, model.row) == spec_of(fitted, row)


@pytest.mark.parametrize("side, photo, noted", [(29, 3000, True), (31, 3000, False), (20, 600, False)])
def test_small_objects_in_large_photos_get_a_note_about_tiles(side, photo, noted):
    """The side counts in the network's 300 pixels. A quarter of the objects is enough."""
    sizes = np.array([[photo, photo], [photo, photo]], np.int32)
    sides = np.array([side, 100, 100, 100]) * photo / 300
    boxes = np.stack([np.zeros(4), np.zeros(4), sides, sides], axis=1).astype(np.float32)
    rest = np.zeros(4, bool), np.zeros(4, np.int8), np.arange(2)
    photos = Annotations(
        ("cat",), np.array([b"a", b"b"]), sizes, np.array([0, 3, 4]), boxes, np.zeros(4, np.int64), *rest, *blank(2)
    )
    notes = dboxes.tiles_note(photos, SSD300_VOC)
    expected = "25% of the objects are smaller than the smallest DBox (30 of 300 pixels), in photos larger than 600"
    assert [note.split(";")[0] for note in notes] == noted * [expected]
