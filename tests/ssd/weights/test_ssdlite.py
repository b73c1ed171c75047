"""torchvision's SSDLite and MobileNetV3: the same weights give the same outputs."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large, vgg16
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList

from ssd.architecture import ARCHITECTURES
from ssd.boxes import to_corners
from ssd.config.schema import VOC_CLASSES, ModelConfig
from ssd.dbox import make_dbox_list, spec_of
from ssd.model import SSD
from ssd.preprocessing import IMAGENET, Preprocessing
from ssd.weights.checkpoint import CheckpointError
from ssd.weights.formats import CENTERED, load_any
from ssd.weights.pretrained import build_network, load_pretrained, network_of
from ssd.weights.sources import hub_file, torchvision_url
from tests.helpers.networks import with_statistics

LITE, FULL = "ssdlite320_mobilenet_v3", "ssdlite320_mobilenet_v3_full"


@pytest.fixture
def _hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()


def torchvision_ssdlite(name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Return torchvision's network with random weights; weights of the backbone are what gives it the full tail."""
    torch.manual_seed(0)
    state = mobilenet_v3_large(weights=None).state_dict()
    monkeypatch.setattr(MobileNet_V3_Large_Weights, "get_state_dict", lambda *_, **__: state)
    weights = MobileNet_V3_Large_Weights.IMAGENET1K_V1 if name == FULL else None
    kwargs = {"num_classes": 91} if name == FULL else {}
    if name == FULL:
        real = mobilenet_v3_large
        monkeypatch.setattr(
            "torchvision.models.detection.ssdlite.mobilenet_v3_large", lambda **given: real(**{**given, "num_classes": 1000})
        )
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=weights, **kwargs)
    return with_statistics(model)


@torch.no_grad()
@pytest.mark.parametrize("name", [LITE, FULL])
def test_outputs_and_dboxes_match_torchvision(tmp_path, monkeypatch, name):
    theirs = torchvision_ssdlite(name, monkeypatch)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    state, project = load_any(tmp_path / "theirs.pth")
    assert project == "torchvision"
    assert len(state.classes) == 90
    assert ModelConfig.model_validate(state.config["model"]).architecture == name
    assert Preprocessing.from_plain(state.preprocessing) == CENTERED
    assert set(state.weights) == set(SSD(2, architecture=ARCHITECTURES[name]).state_dict())
    assert len(state.weights) == len(theirs.state_dict())
    network, images = network_of(state), torch.randn(2, 3, 320, 320)
    maps = list(theirs.backbone(images).values())
    expected = theirs.head(maps)
    loc, conf, dbox_list = network(images)
    for ours, their in ((loc, expected["bbox_regression"]), (conf, expected["cls_logits"])):
        difference = ((ours - their).abs().max() / their.abs().max()).item()
        print(f"{name}: largest difference {difference:.1e} of the largest value")
        assert difference < 1e-4
    anchors = theirs.anchor_generator(ImageList(images, [(320, 320)] * 2), maps)[0]
    assert len(anchors) == 3234
    torch.testing.assert_close(to_corners(dbox_list) * 320, anchors, atol=1e-4, rtol=0)


def test_no_dbox_of_ssdlite_is_clamped_except_at_the_size_of_the_input():
    """torchvision clamps widths and heights, here the centres as well: the same, since all centres lie within the image."""
    dbox_list = make_dbox_list(spec_of("coco", ARCHITECTURES[LITE]))
    assert dbox_list[:, :2].min() > 0
    assert dbox_list[:, :2].max() < 1


@torch.no_grad()
@pytest.mark.usefixtures("_hub")
def test_coco_starts_from_torchvisions_file(monkeypatch):
    theirs = torchvision_ssdlite(LITE, monkeypatch)
    torch.save(theirs.state_dict(), hub_file(torchvision_url("coco", ARCHITECTURES[LITE])))
    options = ModelConfig(architecture=LITE, pretrained="coco", dboxes="coco")
    model = build_network(len(VOC_CLASSES) + 1, options).eval()
    preprocessing, notes = load_pretrained(model, "coco", VOC_CLASSES)
    assert preprocessing == CENTERED
    number = len(model.state_dict())
    assert notes == [f"model.pretrained: coco: {number} of {number} tensors loaded from {notes[0].partition('from ')[2]}"]
    images = torch.randn(1, 3, 320, 320)
    loc, conf, _ = model(images)
    expected = theirs.head(list(theirs.backbone(images).values()))
    torch.testing.assert_close(loc, expected["bbox_regression"], atol=1e-4, rtol=0)
    person, car = VOC_CLASSES.index("person") + 1, VOC_CLASSES.index("car") + 1
    torch.testing.assert_close(conf[..., [0, person, car]], expected["cls_logits"][..., [0, 1, 3]], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.usefixtures("_hub")
@pytest.mark.parametrize("name", [LITE, FULL])
def test_imagenet_starts_from_torchvisions_backbone(name):
    torch.manual_seed(1)
    row = ARCHITECTURES[name]
    norm = partial(nn.BatchNorm2d, eps=0.001)  # torchvision's for ImageNet, and SSDLite's
    theirs = with_statistics(mobilenet_v3_large(weights=None, norm_layer=norm))
    torch.save(theirs.state_dict(), hub_file(torchvision_url("imagenet", row)))
    model = build_network(3, ModelConfig(architecture=name, pretrained="imagenet")).eval()
    before = {layer: value.clone() for layer, value in model.backbone.state_dict().items()}
    preprocessing, notes = load_pretrained(model, "imagenet", ["a", "b"])
    assert preprocessing == IMAGENET
    images = torch.randn(1, 3, 320, 320)
    first, last = model.backbone(images)
    x = theirs.features[:13](images)
    torch.testing.assert_close(first, theirs.features[13].block[0](x), atol=1e-4, rtol=1e-4)
    unchanged = {layer for layer, value in model.backbone.state_dict().items() if torch.equal(value, before[layer])}
    if name == FULL:
        torch.testing.assert_close(last, theirs.features(images), atol=1e-4, rtol=1e-4)
        assert not {layer for layer in unchanged if before[layer].ndim > 1}
        assert notes == []
    else:
        tail = {layer for layer in before if layer.startswith(("block13.block.3.", "block14.", "block15.", "conv16."))}
        assert {layer for layer in unchanged if before[layer].ndim > 1} <= tail
        assert notes == ["model.pretrained: imagenet: newly initialised: block13, block14, block15, conv16"]


def test_other_weights_are_refused(tmp_path):
    model = build_network(3, ModelConfig(architecture=LITE, pretrained="none"))
    torch.save(vgg16(weights=None).features.state_dict(), tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match=r"vgg\.pth: is not torchvision's MobileNetV3-Large: features\.0 lacks"):
        load_pretrained(model, str(tmp_path / "vgg.pth"), ["a", "b"])
    narrow = build_network(3, ModelConfig(architecture=LITE, pretrained="none", width=0.5))
    torch.save(mobilenet_v3_large(weights=None).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"conv0\.0\.weight has the shape \[16, 3, 3, 3\], expected \[8, 3, 3, 3\]"):
        load_pretrained(narrow, str(Path(tmp_path / "wide.pth")), ["a", "b"])
