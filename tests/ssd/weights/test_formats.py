"""Weights of other projects' networks give the same outputs here."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16

from scripts import convert_weights
from ssd.architecture import SSD300_VGG16, SSD512_VGG16
from ssd.config.schema import VOC_CLASSES, PostprocessConfig
from ssd.dbox import SSD300_COCO, make_dbox_list, spec_of
from ssd.inference.predict import PixelModel, predict
from ssd.model import SSD300
from ssd.preprocessing import CAFFE, Preprocessing, normalize
from ssd.weights.checkpoint import CheckpointError, TrainState, load_checkpoint, save_checkpoint
from ssd.weights.formats import coco_names, load_any
from ssd.weights.pretrained import init_from, network_of
from tests.helpers.ports import PORTS, Amdegroot, Lufficc

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4


def pixels(size: int) -> Tensor:
    """Pixels `[1, size, size, 3]` uint8, RGB."""
    return torch.randint(0, 256, (1, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize("name", PORTS)
def test_outputs_match_the_ports(tmp_path, name):
    torch.manual_seed(1)
    theirs = PORTS[name](21).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    state, project = load_any(tmp_path / "theirs.pth")
    assert project == name.partition(",")[0]
    assert state.classes == list(VOC_CLASSES)
    assert Preprocessing.from_plain(state.preprocessing) == CAFFE
    network = network_of(state)
    images = pixels(network.input_size).permute(0, 3, 1, 2) - torch.tensor([123.0, 117.0, 104.0])[:, None, None]
    loc, conf, dbox_list = network(images)
    expected = theirs(images)
    for ours, their in ((loc, expected[0]), (conf, expected[1])):
        difference = ((ours - their).abs().max() / their.abs().max()).item()
        print(f"{name}: largest difference {difference:.1e} of the largest value")
        assert difference < TOLERANCE
    assert torch.equal(dbox_list, make_dbox_list(spec_of("voc", SSD512_VGG16 if "512" in name else SSD300_VGG16)))


@torch.no_grad()
def test_detections_match_torchvision(tmp_path):
    torch.manual_seed(2)
    photos = pixels(300)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None).eval()
    theirs.score_thresh, theirs.nms_thresh, theirs.topk_candidates, theirs.detections_per_img = 0.02, 0.45, 400, 200
    for head in theirs.head.classification_head.module_list:  # larger scores for a few boxes
        nn.init.normal_(head.weight, std=0.02)
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "theirs.pth")
    state, project = load_any(tmp_path / "theirs.pth")
    assert project == "torchvision"
    assert len(state.classes) == 90
    assert state.classes[:3] == ["person", "bicycle", "car"]
    assert state.classes[11] == "N/A 12"
    network = network_of(state)
    assert torch.equal(network.dbox_list, make_dbox_list(SSD300_COCO))
    preprocessing, device = Preprocessing.from_plain(state.preprocessing), torch.device("cpu")
    inputs = [photo.permute(2, 0, 1).float() / 255 for photo in photos]
    prepared, _ = theirs.transform(inputs)
    outputs = theirs.head(list(theirs.backbone(prepared.tensors).values()))
    loc, conf, _ = network(normalize(photos, preprocessing, device))
    for ours, their in ((loc, outputs["bbox_regression"]), (conf, outputs["cls_logits"])):
        difference = ((ours - their).abs().max() / their.abs().max()).item()
        print(f"torchvision: largest difference {difference:.1e} of the largest value")
        assert difference < TOLERANCE
    model = PixelModel(network, preprocessing, device, torch.float32)
    detections = predict(model, photos, PostprocessConfig(score_thresh=0.02))
    for found, their in zip(detections, theirs(inputs), strict=True):
        assert len(found["scores"]) == len(their["scores"]) > 20
        torch.testing.assert_close(found["scores"], their["scores"], rtol=0, atol=TOLERANCE)
        boxes = (found["boxes"][:, None] - their["boxes"] / 300).abs().amax(2)
        scores = (found["scores"][:, None] - their["scores"]).abs()
        other_class = found["labels"][:, None] + 1 != their["labels"]
        alike = (torch.maximum(boxes, scores) + other_class < TOLERANCE).any(0)
        # Of two boxes with almost equal scores, either may suppress the other.
        assert alike.float().mean() > 0.98


def test_classes_and_dboxes_are_inferred_or_given(tmp_path):
    torch.save(Lufficc(81).state_dict(), tmp_path / "coco.pth")
    state, _ = load_any(tmp_path / "coco.pth")
    assert state.classes == coco_names()
    assert len(state.classes) == 80
    assert state.config["model"]["dboxes"] == "coco"
    torch.save({f"module.{name}": value for name, value in Amdegroot(3).state_dict().items()}, tmp_path / "own.pth")
    assert load_any(tmp_path / "own.pth")[0].classes == ["class 1", "class 2"]
    assert load_any(tmp_path / "own.pth", ["cat", "dog"], "coco")[0].classes == ["cat", "dog"]
    with pytest.raises(CheckpointError, match=r"own\.pth: looks like amdegroot.*2 classes in the file, 1 names given"):
        load_any(tmp_path / "own.pth", ["cat"])


def test_unknown_formats_are_rejected(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="is not a checkpoint of this application, nor SSD300"):
        load_any(tmp_path / "a.pth")
    state = Amdegroot(21).state_dict()
    del state["extras.7.bias"]
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"looks like amdegroot/ssd\.pytorch, but lacks 'extras\.7\.bias'"):
        load_any(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_any(tmp_path / "c.pth")


def test_training_starts_from_a_file_of_another_project(tmp_path):
    theirs = Amdegroot(21)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model = SSD300(3)
    preprocessing, notes = init_from(model, tmp_path / "a.pth", ["dog", "zebra"])
    assert preprocessing == CAFFE
    assert "format: amdegroot/ssd.pytorch" in notes[0]
    assert "model.init_from: newly initialised classes: zebra" in notes
    dog = 1 + VOC_CLASSES.index("dog")
    assert torch.equal(model.conf[0].bias.view(4, 3)[:, 1], theirs.conf[0].bias.view(4, 21)[:, dog])


def test_convert_weights_command(tmp_path, capsys):
    torch.save(Amdegroot(21).state_dict(), tmp_path / "a.pth")
    assert convert_weights.main([str(tmp_path / "a.pth")]) == 0
    shown = capsys.readouterr().out
    assert "format: amdegroot/ssd.pytorch" in shown
    assert load_checkpoint(tmp_path / "a.converted.pt").classes == list(VOC_CLASSES)
    assert convert_weights.main([str(tmp_path / "a.pth")]) == 2
    assert "already exists" in capsys.readouterr().err
    save_checkpoint(tmp_path / "own.pt", TrainState({}, [], {}, {}))
    assert convert_weights.main([str(tmp_path / "own.pt")]) == 2
    assert "is already a checkpoint of this application" in capsys.readouterr().err
