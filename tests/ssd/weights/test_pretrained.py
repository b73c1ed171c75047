import hashlib
from urllib.error import URLError

import pytest
import torch
from torchvision.models import vgg16, vgg16_bn
from torchvision.models.detection import SSD300_VGG16_Weights, ssd300_vgg16

from ssd.backbones.vgg import REDUCED_POSITIONS
from ssd.config.schema import ModelConfig
from ssd.dbox import SSD300_COCO, spec_of
from ssd.model import SSD300
from ssd.preprocessing import CAFFE, IMAGENET, normalize
from ssd.system import download
from ssd.weights.checkpoint import CheckpointError, TrainState, save_checkpoint
from ssd.weights.pretrained import build_network, init_from, load_pretrained
from ssd.weights.sources import SHIPPED, find_or_download

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("batch_norm", ["none", "backbone"])
def test_torchvision_file(tmp_path, batch_norm):
    torch.manual_seed(0)
    theirs = (vgg16_bn if batch_norm == "backbone" else vgg16)(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.bias)
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    ours = SSD300(3, batch_norm=batch_norm).eval()
    assert load_pretrained(ours, str(tmp_path / "vgg.pth"), ["a", "b"]) == (IMAGENET, [])
    images = torch.randn(1, 3, 300, 300)
    last = 32 if batch_norm == "backbone" else 22  # conv4_3 and its activation
    with torch.no_grad():
        # torchvision's third pool rounds down, SSD's rounds up: use an image size that divides evenly.
        images = images[..., :256, :256]
        expected = theirs.features[: last + 1](images)
        torch.testing.assert_close(ours.backbone(images)[0], expected, atol=1e-4, rtol=1e-4)
    # fc6 keeps every fourth row of the 4096, and rows 0, 3, 6 of its 7 × 7 window.
    fc6 = theirs.classifier[0].weight.view(4096, 512, 7, 7)
    assert torch.equal(ours.backbone.fc6.conv.weight[5, 7, 1, 2], fc6[20, 7, 3, 6])
    assert torch.equal(ours.backbone.fc7.conv.weight[3, 9, 0, 0], theirs.classifier[3].weight[12, 36])


def test_reduced_fc_file(tmp_path):
    torch.manual_seed(0)
    source = SSD300(3)
    names = [name for name, child in source.backbone.named_children() if hasattr(child, "conv")]
    state = {}
    for name, position in zip(names, REDUCED_POSITIONS, strict=True):
        state[f"{position}.weight"] = source.backbone.get_submodule(name).conv.weight.detach()
        state[f"{position}.bias"] = torch.randn_like(source.backbone.get_submodule(name).conv.bias)
    torch.save(state, tmp_path / "reduced.pth")
    model = SSD300(3)
    assert load_pretrained(model, str(tmp_path / "reduced.pth"), ["a", "b"]) == (CAFFE, [])
    assert torch.equal(model.backbone.fc7.conv.bias, state["33.bias"])
    assert torch.equal(model.backbone.conv4_3.conv.weight, state["21.weight"])
    wrapped = {"model": {f"module.{name}": value for name, value in state.items()}, "optimizer": {}, "iteration": 3}
    torch.save(wrapped, tmp_path / "wrapped.pth")  # as their training saves it
    again = SSD300(3)
    load_pretrained(again, str(tmp_path / "wrapped.pth"), ["a", "b"])
    assert torch.equal(again.backbone.fc6.conv.weight, model.backbone.fc6.conv.weight)
    del state["31.weight"]
    torch.save(state, tmp_path / "reduced.pth")
    with pytest.raises(CheckpointError, match=r"31\.weight \(fc6\) is missing"):
        load_pretrained(model, str(tmp_path / "reduced.pth"), ["a", "b"])


def test_slim_equals_its_file():
    networks = []
    for source in ("slim", str(SHIPPED["slim"])):
        options = ModelConfig.model_validate({"pretrained": source, "width": 0.25, "batch_norm": "backbone"})
        torch.manual_seed(0)
        networks.append(build_network(3, options))
        load_pretrained(networks[-1], source, ["person", "car"])
    for name, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[name]), name


def test_unsuitable_files_are_rejected(tmp_path):
    model = SSD300(3, width=1.0)
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("x")
    for name, expected in [
        ("part.pth", "not a complete VGG16"),
        ("other.pth", "or a reduced-fc VGG16"),
        ("list.pth", "is not a state dict"),
        ("text.pth", "not loaded: contains more than tensors"),
        ("none.pth", "no such file"),
    ]:
        with pytest.raises(CheckpointError, match=expected):
            load_pretrained(model, str(tmp_path / name), ["a", "b"])


@pytest.mark.parametrize("source, file", [("imagenet", "vgg16-397923af.pth"), ("coco", "ssd300_vgg16_coco-b556d3b4.pth")])
def test_a_failed_download_says_where_to_put_the_file(tmp_path, monkeypatch, source, file):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(download, "PAUSE", 0.0)

    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(download, "urlopen", fail)
    with pytest.raises(CheckpointError, match=rf"{file} cannot be downloaded .*no network.*put it into {tmp_path}/checkpoints"):
        load_pretrained(SSD300(3, width=0.1), source, ["a", "b"])


def test_downloads_are_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    served = tmp_path / "served"
    served.mkdir()
    digest = hashlib.sha256(b"weights").hexdigest()
    good = served / f"net-{digest[:8]}.pth"
    good.write_bytes(b"weights")
    assert find_or_download("coco", good.as_uri()).read_bytes() == b"weights"
    bad = served / f"bad-{digest[:8]}.pth"
    bad.write_bytes(b"other")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with pytest.raises(CheckpointError, match="digest mismatch"):
        find_or_download("coco", bad.as_uri())
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pth")) == [good.name]


@pytest.fixture(scope="module")
def torchvision_ssd() -> torch.nn.Module:
    """torchvision's SSD300 for the 90 class numbers of COCO, with random weights."""
    torch.manual_seed(0)
    model = ssd300_vgg16(weights=None, weights_backbone=None).eval()
    with torch.no_grad():
        model.backbone.scale_weight.uniform_(10, 20)
    return model


def test_coco_matches_torchvision_on_shared_classes(tmp_path, monkeypatch, torchvision_ssd):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(torchvision_ssd.state_dict(), tmp_path / "checkpoints/ssd300_vgg16_coco-b556d3b4.pth")
    classes = ["Dog", "tvmonitor", "widget", "aeroplane"]
    ours = SSD300(5, spec=SSD300_COCO).eval()
    untouched = ours.conf[0].bias.view(-1, 5)[:, 3].clone()
    preprocessing, notes = load_pretrained(ours, "coco", classes)
    assert "newly initialised classes: widget" in " ".join(notes)
    assert not any(note.startswith("warning") for note in notes)
    assert torch.equal(ours.conf[0].bias.view(-1, 5)[:, 3], untouched)
    pixels = torch.randint(0, 256, (1, 300, 300, 3), dtype=torch.uint8)
    with torch.no_grad():
        images, _ = torchvision_ssd.transform([pixels[0].permute(2, 0, 1) / 255])
        head = torchvision_ssd.head(list(torchvision_ssd.backbone(images.tensors).values()))
        loc, conf, _ = ours(normalize(pixels, preprocessing))
    categories = SSD300_VGG16_Weights.COCO_V1.meta["categories"]
    columns = [0, *(categories.index(name) for name in ("dog", "tv", "airplane"))]
    expected_loc, expected_conf = head["bbox_regression"], head["cls_logits"][..., columns]
    assert (loc - expected_loc).abs().max() < 1e-4 * expected_loc.abs().max()
    assert (conf[..., [0, 1, 2, 4]] - expected_conf).abs().max() < 1e-4 * expected_conf.abs().max()


def test_pretrained_accepts_a_detector_file(tmp_path, torchvision_ssd):
    torch.save(torchvision_ssd.state_dict(), tmp_path / "mine.pth")
    ours = SSD300(3)  # with VOC's DBoxes
    _, notes = load_pretrained(ours, str(tmp_path / "mine.pth"), ["dog", "cat"])
    assert any("trained with the coco DBoxes" in note and "set model.dboxes: coco" in note for note in notes)
    assert torch.equal(ours.backbone.conv1_1.conv.weight, torchvision_ssd.backbone.features[0].weight)


def checkpoint(path, classes, dboxes="voc", **options):
    model = SSD300(len(classes) + 1, spec=spec_of(dboxes), **options)
    preprocessing, config = CAFFE.to_plain(), {"model": {"dboxes": dboxes}}
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    save_checkpoint(path, TrainState(model=model.state_dict(), classes=classes, preprocessing=preprocessing, config=config))
    return model


def test_init_from_loads_all_tensors_that_fit(tmp_path):
    theirs = checkpoint(tmp_path / "a.pt", ["cat", "dog"], width=0.1)
    model = SSD300(3, width=0.1)
    preprocessing, notes = init_from(model, tmp_path / "a.pt", ["cat", "dog"])
    assert preprocessing == CAFFE
    assert len(notes) == 1
    images = torch.randn(1, 3, 300, 300)
    for ours, expected in zip(model(images), theirs(images), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("batch_norm", ["none", "all"])
def test_init_from_matches_class_scores_by_name(tmp_path, batch_norm):
    theirs = checkpoint(tmp_path / "a.pt", ["cat", "dog", "cow"], width=0.1, batch_norm=batch_norm).eval()
    model = SSD300(4, width=0.1, batch_norm=batch_norm).eval()
    images = torch.randn(1, 3, 300, 300)
    before = model(images)[1]
    _, notes = init_from(model, tmp_path / "a.pt", ["horse", "cow", "cat"])
    assert "model.init_from: newly initialised classes: horse" in notes
    loc, conf, _ = model(images)
    their_loc, their_conf, _ = theirs(images)
    assert torch.equal(loc, their_loc)
    torch.testing.assert_close(conf[..., [0, 2, 3]], their_conf[..., [0, 3, 1]])
    assert not torch.allclose(conf[..., 1], before[..., 1])  # its input features are theirs
    assert not torch.allclose(conf[..., 1], their_conf[..., 1])


def test_init_from_reports_tensors_not_loaded(tmp_path):
    checkpoint(tmp_path / "a.pt", ["cat"], width=0.1)
    model = SSD300(2, width=0.1, batch_norm="backbone")
    _, notes = init_from(model, tmp_path / "a.pt", ["cat"])
    (left,) = [note for note in notes if "not loaded: backbone.conv1_1.conv.bias [8] (not in this model), " in note]
    assert left.endswith(", and 16 more")  # biases of 15 convolutions of VGG16 and of 7 extra layers
    assert len(left) < 500
    with pytest.raises(CheckpointError, match="no tensor fits"):
        init_from(SSD300(2, width=0.37), tmp_path / "a.pt", ["cat"])


@pytest.mark.parametrize(
    "entry, theirs, ours",
    [
        ("batch_norm", "none", "backbone"), ("batch_norm", "all", "backbone"), ("batch_norm", "backbone", "none"),
        ("conv4_3_norm", "l2", "none"), ("conv4_3_norm", "none", "l2"), ("conv4_3_norm", "batch", "none"),
    ],
)  # fmt: skip
def test_init_from_warns_about_different_normalisation(tmp_path, entry, theirs, ours):
    checkpoint(tmp_path / "a.pt", ["cat"], width=0.1, **{entry: theirs})
    _, notes = init_from(SSD300(2, width=0.1, **{entry: ours}), tmp_path / "a.pt", ["cat"])
    (warning,) = [note for note in notes if note.startswith("warning: ")]
    assert f"were trained with {entry}: {theirs}, this model has {ours}; set model.{entry}: {theirs} to use" in warning
    _, notes = init_from(SSD300(2, width=0.1, **{entry: theirs}), tmp_path / "a.pt", ["cat"])
    assert len(notes) == 1  # everything fits


def test_init_from_reports_different_dboxes(tmp_path):
    checkpoint(tmp_path / "a.pt", ["cat"], dboxes="coco", width=0.1)
    _, notes = init_from(SSD300(2, width=0.1), tmp_path / "a.pt", ["cat"])
    (told,) = [note for note in notes if "DBoxes" in note]
    assert "the heads were trained with the coco DBoxes and adapt" in told
    assert "to use them unchanged, set model.dboxes: coco" in told
    _, notes = init_from(SSD300(2, width=0.1, spec=spec_of("coco")), tmp_path / "a.pt", ["cat"])
    assert not any("DBoxes" in note for note in notes)


def test_ssd512_starts_from_the_layers_of_ssd300_that_fit(tmp_path):
    torch.manual_seed(0)
    source = SSD300(3, width=0.05)
    config = {"model": ModelConfig(pretrained="none", width=0.05).model_dump(mode="json")}
    save_checkpoint(tmp_path / "a.pt", TrainState(source.state_dict(), ["cat", "dog"], IMAGENET.to_plain(), config))
    model = build_network(3, ModelConfig(architecture="ssd512", pretrained="none", width=0.05))
    _, notes = init_from(model, tmp_path / "a.pt", ["cat", "dog"])
    # Six DBoxes a cell instead of four.
    left = {f"{head}.4.{entry}" for head in ("loc", "conf") for entry in ("weight", "bias")}
    own = model.state_dict()
    assert all(torch.equal(own[name], value) != (name in left) for name, value in source.state_dict().items())
    assert "model.init_from: the heads were trained for SSD300 and adapt to this network in training" in notes
    assert notes[-1].startswith("model.init_from: not loaded: loc.4.weight [16, 16, 3, 3] (expected [24, 16, 3, 3])")
