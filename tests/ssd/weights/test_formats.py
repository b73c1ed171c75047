"""Other projects' networks, built by their published names and shapes with random weights, against what is read of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16

from scripts import convert_weights
from ssd.config.schema import VOC_CLASSES, PostprocessConfig
from ssd.dbox import SSD300_COCO, SSD300_VOC, make_dbox_list
from ssd.inference.predict import PixelModel, predict
from ssd.model import SSD300
from ssd.preprocessing import CAFFE, Preprocessing, normalize
from ssd.weights.checkpoint import CheckpointError, TrainState, load_checkpoint, save_checkpoint
from ssd.weights.formats import coco_names, load_any
from ssd.weights.pretrained import init_from, network_of

pytestmark = pytest.mark.slow

CONV4_3_END = 23  # layers of the list up to the ReLU of conv4_3
TOLERANCE = 1e-4


class L2Norm(nn.Module):
    def __init__(self, entry: str) -> None:
        super().__init__()
        self.register_parameter(entry, nn.Parameter(torch.rand(512) * 20))

    def forward(self, x: Tensor) -> Tensor:
        (weight,) = self.parameters()
        return F.normalize(x, dim=1) * weight[None, :, None, None]


def reduced_fc() -> list[nn.Module]:
    """VGG16's layers in a list, as Caffe's ports have them."""
    layers: list[nn.Module] = []
    inputs = 3
    for value in (64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512):
        if isinstance(value, int):
            layers += [nn.Conv2d(inputs, value, 3, padding=1), nn.ReLU()]
            inputs = value
        else:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=value == "C"))
    layers += [nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU()]
    return [*layers, nn.Conv2d(1024, 1024, 1), nn.ReLU()]


def extra_layers() -> list[nn.Module]:
    rows = ((1024, 256, 1, 1, 0), (256, 512, 3, 2, 1), (512, 128, 1, 1, 0), (128, 256, 3, 2, 1))
    rows += ((256, 128, 1, 1, 0), (128, 256, 3, 1, 0)) * 2
    return [nn.Conv2d(*row) for row in rows]


def heads(values: int) -> nn.ModuleList:
    rows = zip((512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True)
    return nn.ModuleList(nn.Conv2d(channels, boxes * values, 3, padding=1) for channels, boxes in rows)


class Port(nn.Module):
    """The forward pass that all three ports have in common; where the modules stand is up to the format."""

    def run(self, x: Tensor, base: nn.ModuleList, norm: nn.Module, extras: list[nn.Module], loc, conf) -> tuple[Tensor, Tensor]:
        sources = []
        for layer in base[:CONV4_3_END]:
            x = layer(x)
        sources.append(norm(x))
        for layer in base[CONV4_3_END:]:
            x = layer(x)
        sources.append(x)
        for number, layer in enumerate(extras):
            x = F.relu(layer(x))
            if number % 2:
                sources.append(x)
        outputs = []
        for group in (loc, conf):
            maps = [head(source).permute(0, 2, 3, 1).flatten(1) for head, source in zip(group, sources, strict=True)]
            outputs.append(torch.cat(maps, 1).view(len(x), 8732, -1))
        return outputs[0], outputs[1]


class Amdegroot(Port):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.vgg, self.extras = nn.ModuleList(reduced_fc()), nn.ModuleList(extra_layers())
        self.L2Norm = L2Norm("weight")
        self.loc, self.conf = heads(4), heads(columns)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(x, self.vgg, self.L2Norm, list(self.extras), self.loc, self.conf)


class Lufficc(Port):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.backbone, self.box_head = nn.Module(), nn.Module()
        self.backbone.vgg, self.backbone.extras = nn.ModuleList(reduced_fc()), nn.ModuleList(extra_layers())
        self.backbone.l2_norm = L2Norm("weight")
        self.box_head.predictor = nn.Module()
        self.box_head.predictor.cls_headers, self.box_head.predictor.reg_headers = heads(columns), heads(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        backbone, head = self.backbone, self.box_head.predictor
        return self.run(x, backbone.vgg, backbone.l2_norm, list(backbone.extras), head.reg_headers, head.cls_headers)


class Qfgaohao(Port):
    def __init__(self, columns: int, batch_norm: bool) -> None:
        super().__init__()
        extras = extra_layers()
        self.base_net = nn.ModuleList(reduced_fc())
        pairs = zip(extras[::2], extras[1::2], strict=True)
        self.extras = nn.ModuleList(nn.Sequential(first, nn.ReLU(), second, nn.ReLU()) for first, second in pairs)
        self.source_layer_add_ons = nn.ModuleList([nn.BatchNorm2d(512) if batch_norm else L2Norm("scale")])
        self.regression_headers, self.classification_headers = heads(4), heads(columns)
        if batch_norm:
            norm = self.source_layer_add_ons[0]
            for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                values.uniform_(0.1, 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        extras = [layer for pair in self.extras for layer in pair if isinstance(layer, nn.Conv2d)]
        base, norm = self.base_net, self.source_layer_add_ons[0]
        return self.run(x, base, norm, extras, self.regression_headers, self.classification_headers)


PORTS = {
    "amdegroot/ssd.pytorch": lambda columns: Amdegroot(columns),
    "lufficc/SSD": lambda columns: Lufficc(columns),
    "qfgaohao/pytorch-ssd": lambda columns: Qfgaohao(columns, batch_norm=True),
    "qfgaohao/pytorch-ssd, older": lambda columns: Qfgaohao(columns, batch_norm=False),
}


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Pixels `[1, 300, 300, 3]` uint8, RGB."""
    return torch.randint(0, 256, (1, 300, 300, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize("name", PORTS)
def test_ports_give_the_same_as_here(tmp_path, photos, name):
    torch.manual_seed(1)
    theirs = PORTS[name](21).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    state, project = load_any(tmp_path / "theirs.pth")
    assert project == name.partition(",")[0]
    assert state.classes == list(VOC_CLASSES)
    assert Preprocessing(**state.preprocessing) == CAFFE
    images = photos.permute(0, 3, 1, 2) - torch.tensor([123.0, 117.0, 104.0])[:, None, None]
    loc, conf, dbox_list = network_of(state)(images)
    expected = theirs(images)
    for ours, their in ((loc, expected[0]), (conf, expected[1])):
        difference = ((ours - their).abs().max() / their.abs().max()).item()
        print(f"{name}: largest difference {difference:.1e} of the largest value")
        assert difference < TOLERANCE
    assert torch.equal(dbox_list, make_dbox_list(SSD300_VOC))


@torch.no_grad()
def test_torchvision_finds_the_same_from_pixels_on(tmp_path, photos):
    torch.manual_seed(2)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None).eval()
    theirs.score_thresh, theirs.nms_thresh, theirs.topk_candidates, theirs.detections_per_img = 0.02, 0.45, 400, 200
    for head in theirs.head.classification_head.module_list:  # so that a few boxes stand out
        nn.init.normal_(head.weight, std=0.02)
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "theirs.pth")
    state, project = load_any(tmp_path / "theirs.pth")
    assert project == "torchvision"
    assert len(state.classes) == 90
    assert state.classes[:3] == ["person", "bicycle", "car"]
    assert state.classes[11] == "N/A 12"
    network = network_of(state)
    assert torch.equal(network.dbox_list, make_dbox_list(SSD300_COCO))
    preprocessing, device = Preprocessing(**state.preprocessing), torch.device("cpu")
    pixels = [photo.permute(2, 0, 1).float() / 255 for photo in photos]
    prepared, _ = theirs.transform(pixels)
    outputs = theirs.head(list(theirs.backbone(prepared.tensors).values()))
    loc, conf, _ = network(normalize(photos, preprocessing, device))
    for ours, their in ((loc, outputs["bbox_regression"]), (conf, outputs["cls_logits"])):
        difference = ((ours - their).abs().max() / their.abs().max()).item()
        print(f"torchvision: largest difference {difference:.1e} of the largest value")
        assert difference < TOLERANCE
    detections = predict(
        PixelModel(network, preprocessing, device, torch.float32), photos, PostprocessConfig(score_thresh=0.02)
    )
    for found, their in zip(detections, theirs(pixels), strict=True):
        assert len(found["scores"]) == len(their["scores"]) > 20
        torch.testing.assert_close(found["scores"], their["scores"], rtol=0, atol=TOLERANCE)
        boxes = (found["boxes"][:, None] - their["boxes"] / 300).abs().amax(2)
        scores = (found["scores"][:, None] - their["scores"]).abs()
        other_class = found["labels"][:, None] + 1 != their["labels"]
        alike = (torch.maximum(boxes, scores) + other_class < TOLERANCE).any(0)
        # Of two boxes of the same score to the last digits, either may suppress the other.
        assert alike.float().mean() > 0.98


def test_classes_and_dboxes_by_number_and_by_hand(tmp_path):
    torch.save(Lufficc(81).state_dict(), tmp_path / "coco.pth")
    state, _ = load_any(tmp_path / "coco.pth")
    assert state.classes == coco_names()
    assert len(state.classes) == 80
    assert state.config["model"]["dboxes"] == "coco"
    torch.save({f"module.{name}": value for name, value in Amdegroot(3).state_dict().items()}, tmp_path / "own.pth")
    assert load_any(tmp_path / "own.pth")[0].classes == ["class 1", "class 2"]
    assert load_any(tmp_path / "own.pth", ["cat", "dog"], "coco")[0].classes == ["cat", "dog"]
    with pytest.raises(CheckpointError, match=r"own\.pth: is like amdegroot.*2 classes in the file, 1 names given"):
        load_any(tmp_path / "own.pth", ["cat"])


def test_what_is_of_no_known_format_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="is neither a checkpoint of this application nor SSD300"):
        load_any(tmp_path / "a.pth")
    state = Amdegroot(21).state_dict()
    del state["extras.7.bias"]
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"is like amdegroot/ssd\.pytorch, but 'extras\.7\.bias' is missing"):
        load_any(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_any(tmp_path / "c.pth")


def test_training_starts_from_another_projects_file(tmp_path):
    theirs = Amdegroot(21)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model = SSD300(3)
    preprocessing, notes = init_from(model, tmp_path / "a.pth", ["dog", "zebra"])
    assert preprocessing == CAFFE
    assert "format: amdegroot/ssd.pytorch" in notes[0]
    assert "model.init_from: newly initialised classes: zebra" in notes
    dog = 1 + VOC_CLASSES.index("dog")
    assert torch.equal(model.conf[0].bias.view(4, 3)[:, 1], theirs.conf[0].bias.view(4, 21)[:, dog])


def test_the_command(tmp_path, capsys):
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
