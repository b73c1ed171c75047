import pytest
import torch

from ssd.architecture import ARCHITECTURES, SSD300_VGG16
from ssd.backbones.vgg import LAYER_NAMES
from ssd.config import ConfigError
from ssd.config.file import parse_config
from ssd.config.schema import ModelConfig
from ssd.model import SSD300

DATA = {"train": [{"path": "a"}], "val": [{"path": "b"}]}


def test_the_numbers_of_the_paper_follow_from_the_row():
    assert [SSD300_VGG16.cells(row) for row in SSD300_VGG16.maps] == [38, 19, 10, 5, 3, 1]
    assert set(SSD300_VGG16.freezable) <= set(LAYER_NAMES)
    assert len(LAYER_NAMES) == 15


def test_the_network_makes_maps_of_these_sizes():
    model = SSD300(3, width=0.05).eval()
    conv4_3, fc7 = model.backbone(torch.zeros(1, 3, 300, 300))
    maps = [conv4_3, fc7, *model.extras(fc7)]
    assert [x.shape[-1] for x in maps] == [SSD300_VGG16.cells(row) for row in SSD300_VGG16.maps]


def test_the_configuration_knows_the_names_of_the_table():
    assert parse_config({"data": DATA}).model.architecture == "ssd300"
    assert ModelConfig.model_validate({"pretrained": "none"}).architecture in ARCHITECTURES  # as in older checkpoints
    for entry, expected in (
        ({"architecture": "ssd512"}, "c: model.architecture: expected 'ssd300', got 'ssd512'"),
        ({"freeze": "conv1_1"}, "c: model.freeze: expected 'conv2_2', 'conv3_3', 'conv4_3', 'fc7' or null, got 'conv1_1'"),
    ):
        with pytest.raises(ConfigError) as error:
            parse_config({"data": DATA, "model": entry}, "c")
        assert str(error.value) == expected
