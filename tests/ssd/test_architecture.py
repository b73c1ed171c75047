from dataclasses import replace

import pytest
import torch

from ssd.architecture import ARCHITECTURES, SSD300_VGG16, SSD512_VGG16
from ssd.backbones import BACKBONES
from ssd.backbones.vgg import LAYER_NAMES
from ssd.config import ConfigError
from ssd.config.file import parse_config
from ssd.config.schema import ModelConfig
from ssd.dbox import make_dbox_list, named_specs, spec_of
from ssd.model import SSD
from tests.helpers.networks import narrow

DATA = {"train": [{"path": "a"}], "val": [{"path": "b"}]}
LITE = "ssdlite320_mobilenet_v3"
# Input size, cells of each map, DBoxes per cell, and their number: from the papers and torchvision.
EXPECTED = {
    "ssd300": (300, [38, 19, 10, 5, 3, 1], (4, 6, 6, 6, 4, 4), 8732),
    "ssd512": (512, [64, 32, 16, 8, 4, 2, 1], (4, 6, 6, 6, 6, 4, 4), 24_564),
    "ssd300_resnet50": (300, [38, 19, 10, 5, 3, 1], (4, 6, 6, 6, 4, 4), 8732),
    LITE: (320, [20, 10, 5, 3, 2, 1], (6,) * 6, 3234),
    f"{LITE}_full": (320, [20, 10, 5, 3, 2, 1], (6,) * 6, 3234),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_numbers_of_the_papers_follow_from_the_row(name):
    row = ARCHITECTURES[name]
    size, cells, boxes_per_cell, num_dboxes = EXPECTED[name]
    assert row.input_size == size
    assert [row.cells(feature_map) for feature_map in row.maps] == cells
    assert row.boxes_per_cell == boxes_per_cell
    assert [*named_specs(row)] == ["voc", "coco"]
    for spec in named_specs(row).values():
        assert (spec.num_dboxes, spec.boxes_per_cell) == (num_dboxes, boxes_per_cell)
        assert make_dbox_list(spec).shape == (num_dboxes, 4)
    assert row.backbone in BACKBONES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_network_makes_maps_of_these_sizes(name):
    row = ARCHITECTURES[name]
    model = SSD(3, width=narrow(row), architecture=row).eval()
    images = torch.zeros(2, 3, row.input_size, row.input_size)
    with torch.no_grad():
        maps = model.backbone(images)
        assert tuple(x.shape[1] for x in maps) == model.backbone.out_channels
        maps = [*maps, *model.extras(maps[-1])]
        loc, conf, dbox_list = model(images)
    assert [x.shape[-1] for x in maps] == [row.cells(feature_map) for feature_map in row.maps]
    assert loc.shape[1:] == dbox_list.shape == (EXPECTED[name][3], 4)
    assert conf.shape == (2, EXPECTED[name][3], 3)
    assert set(row.freezable) <= set(model.backbone.layer_names)
    assert all(hasattr(model.backbone, layer) for layer in model.backbone.layer_names)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_trains_on_one_photo_and_freezing_stops_there(name):
    row = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = SSD(3, batch_norm=row.batch_norms[-1], width=narrow(row), architecture=row)
    model.freeze(row.freezable[0])
    images = torch.randn(1, 3, row.input_size, row.input_size)
    loc, conf, _ = model.train()(images)
    (loc.square().mean() + conf.square().mean()).backward()
    frozen = tuple(f"backbone.{layer}." for layer in model.frozen)
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is None) == parameter_name.startswith(frozen), parameter_name


def test_vgg_has_15_layers():
    assert len(LAYER_NAMES) == 15


def test_conv10_2_of_ssd512_covers_two_cells():
    """A kernel of 4 with a padding of 1, as in ssd_pascal_512.py: 2 + 2 · 1 - 4 + 1 = 1."""
    conv = SSD(3, width=0.05, architecture=SSD512_VGG16).extras.conv10_2.conv
    assert (conv.kernel_size, conv.stride, conv.padding) == ((4, 4), (1, 1), (1, 1))


def test_dboxes_of_ssd512_by_hand():
    dbox_list = make_dbox_list(spec_of("voc", SSD512_VGG16)) * 512
    # conv4_3, first cell: 35.84, sqrt(35.84 · 76.8) = 52.464, 35.84 · sqrt(2) = 50.685 and 35.84 / sqrt(2) = 25.343.
    sides = [(35.84, 35.84), (52.464, 52.464), (50.685, 25.343), (25.343, 50.685)]
    torch.testing.assert_close(dbox_list[:4], torch.tensor([(4.0, 4.0, *side) for side in sides]), atol=1e-3, rtol=0)
    # conv8_2 begins behind 16,384 + 6,144 + 1,536 + 384 DBoxes, in cells of 128: 307.2, sqrt(307.2 · 384) = 343.460,
    # 307.2 · sqrt(3) = 532.086, clamped to 512, and 307.2 / sqrt(3) = 177.362.
    first = 16_384 + 6144 + 1536 + 384
    torch.testing.assert_close(dbox_list[first], torch.tensor([64.0, 64.0, 307.2, 307.2]), atol=1e-3, rtol=0)
    torch.testing.assert_close(dbox_list[first + 1], torch.tensor([64.0, 64.0, 343.460, 343.460]), atol=1e-3, rtol=0)
    torch.testing.assert_close(dbox_list[first + 4], torch.tensor([64.0, 64.0, 512.0, 177.362]), atol=1e-3, rtol=0)
    # conv10_2, one cell: sqrt(460.8 · 537.6) = 497.721.
    torch.testing.assert_close(dbox_list[-3], torch.tensor([256.0, 256.0, 497.721, 497.721]), atol=1e-3, rtol=0)
    small = make_dbox_list(spec_of("coco", SSD512_VGG16)) * 512
    torch.testing.assert_close(small[0], torch.tensor([4.0, 4.0, 20.48, 20.48]), atol=1e-3, rtol=0)
    # sqrt(460.8 · 542.72) = 500.086
    torch.testing.assert_close(small[-3], torch.tensor([256.0, 256.0, 500.086, 500.086]), atol=1e-3, rtol=0)


def test_the_configuration_knows_the_names_of_the_table():
    assert parse_config({"data": DATA}).model.architecture == "ssd300"
    assert ModelConfig.model_validate({"pretrained": "none"}).architecture in ARCHITECTURES  # as in older checkpoints
    assert ModelConfig().row is SSD300_VGG16
    *first, last = (f"'{name}'" for name in EXPECTED)
    for entry, expected in (
        ({"architecture": "ssd511"}, f"architecture: expected {', '.join(first)} or {last}, got 'ssd511'"),
        ({"freeze": "conv1_1"}, "freeze: expected 'conv2_2', 'conv3_3', 'conv4_3', 'fc7' or null for ssd300, got 'conv1_1'"),
        (
            {"architecture": LITE, "freeze": "conv3_3"},
            f"freeze: expected 'block3', 'block6', 'block12' or null for {LITE}, got 'conv3_3'",
        ),
        ({"architecture": LITE, "batch_norm": "none"}, f"batch_norm: expected 'all' for {LITE}, got 'none'"),
        (
            {"architecture": "ssd512", "dboxes": {"sizes": [20, 30, 40, 50, 60, 70, 80], "ratios": [[2]] * 6}},
            "dboxes: expected 8 sizes, each larger than the one before, got [20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            parse_config({"data": DATA, "model": entry}, "c")
        assert str(error.value) == f"c: model.{expected}"


def test_a_network_without_coco_weights_says_so():
    with pytest.raises(ConfigError) as error:
        parse_config({"data": DATA, "model": {"architecture": "ssd300_resnet50", "pretrained": "coco"}}, "c")
    expected = "there are no coco weights of ssd300_resnet50; set pretrained: imagenet or none"
    assert str(error.value) == f"c: model: pretrained: {expected}"


def test_impossible_widths_and_norms_are_refused(monkeypatch):
    row = replace(SSD300_VGG16, scalable=False)
    with pytest.raises(ValueError, match=r"^width: expected 1\.0 for SSD300, got 0\.5$"):
        SSD(3, width=0.5, architecture=row)
    monkeypatch.setitem(ARCHITECTURES, "ssd300", row)
    with pytest.raises(ConfigError, match=r"^c: model\.width: expected 1\.0 for ssd300, got 0\.5$"):
        parse_config({"data": DATA, "model": {"width": 0.5, "pretrained": "none"}}, "c")
    with pytest.raises(ValueError, match=r"^batch_norm: expected backbone or all, got 'none'$"):
        SSD(3, batch_norm="none", architecture=ARCHITECTURES["ssd300_resnet50"])


def test_entries_default_to_what_the_row_needs():
    lite = ModelConfig.model_validate({"architecture": LITE})
    assert (lite.batch_norm, lite.conv4_3_norm, lite.pretrained) == ("all", "none", "imagenet")
    assert ModelConfig.model_validate(lite.model_dump(mode="json")) == lite
    assert ModelConfig.model_validate({"architecture": LITE, "pretrained": "coco", "freeze": "block6"}).freeze == "block6"
    large = ModelConfig.model_validate({"architecture": "ssd512"})
    assert large.model_copy(update={"architecture": "ssd300"}) == ModelConfig()
    with pytest.raises(ValueError, match="pretrained: slim is an SSD300; set architecture: ssd300"):
        ModelConfig.model_validate({"architecture": LITE, "pretrained": "slim", "width": 0.25})
