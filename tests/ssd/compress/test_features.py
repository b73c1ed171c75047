"""Initialisation from VGG16's convolutions, with random weights in torchvision's layout."""

import pytest
import torch
from torch import nn

from ssd.backbones.vgg import CONV_NAMES, TORCHVISION_BIASES
from ssd.compress.features import features_in, start_from_features
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET, OXFORD, Preprocessing, normalize
from ssd.weights.checkpoint import CheckpointError
from ssd.weights.pretrained import load_pretrained

POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
COARSE = torch.randint(0, 256, (2, 3, 20, 20), generator=torch.Generator().manual_seed(0))
PIXELS = nn.functional.interpolate(COARSE.float(), 300, mode="bilinear")
PIXELS = PIXELS.byte().permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def features():
    """The 13 convolutions as stored in a file, with weights in half precision."""
    torch.manual_seed(0)
    backbone = SSD300(2).backbone
    state = {}
    for name, position in zip(CONV_NAMES, POSITIONS, strict=True):
        conv = backbone.get_submodule(name).conv
        nn.init.kaiming_normal_(conv.weight)
        state[f"features.{position}.weight"] = conv.weight.detach().half()
        state[f"features.{position}.bias"] = torch.full_like(conv.bias, 0.1)
    return state


CLASSIFIER = {f"classifier.{i}.{entry}": torch.full((2,), torch.nan) for i in (0, 3, 6) for entry in ("weight", "bias")}


@pytest.mark.parametrize("classifier", [{}, CLASSIFIER])
def test_features_without_a_classifier_initialise_a_network(features, tmp_path, classifier):
    torch.save({**features, **classifier}, tmp_path / "features.pth")
    torch.manual_seed(1)
    model = SSD300(3)
    drawn = model.backbone.fc6.conv.weight.clone()
    path = str(tmp_path / "features.pth")
    assert load_pretrained(model, path, ["a", "b"]) == (OXFORD, [f"model.pretrained: {path}: newly initialised: fc6, fc7"])
    assert torch.equal(model.backbone.conv4_3.conv.weight, features["features.21.weight"].float())
    assert torch.equal(model.backbone.fc6.conv.weight, drawn)


def test_torchvision_features_get_torchvision_preprocessing(features, tmp_path):
    """They have the same keys as Oxford's, but need other pixel values."""
    biases = torch.cat([torch.tensor(TORCHVISION_BIASES), torch.zeros(61)])
    torch.save({**features, "features.0.bias": biases}, tmp_path / "features.pth")
    path = str(tmp_path / "features.pth")
    notes = [f"model.pretrained: {path}: newly initialised: fc6, fc7"]
    assert load_pretrained(SSD300(3), path, ["a", "b"]) == (IMAGENET, notes)


def test_other_files_are_not_features(features):
    whole = {f"classifier.{i}.weight": torch.zeros(2) for i in (0, 3, 6)}
    assert features_in({**features, **whole}) is None  # torchvision's own VGG16
    assert features_in({"0.weight": torch.zeros(2)}) is None
    del whole
    assert features_in({"state_dict": features}) is not None


def test_missing_layer_is_reported(features, tmp_path):
    torch.save({name: value for name, value in features.items() if name != "features.5.bias"}, tmp_path / "features.pth")
    with pytest.raises(CheckpointError, match=r"features\.5\.bias \(conv2_1\) is missing"):
        load_pretrained(SSD300(3), str(tmp_path / "features.pth"), ["a", "b"])


@pytest.mark.slow
def test_normalised_features_give_the_same_maps(features):
    """Up to a factor per channel that gives unit variance."""
    plain, normalised = SSD300(2).eval(), SSD300(2, "backbone").eval()
    preprocessing = start_from_features(normalised, features, PIXELS, "features.pth")
    assert preprocessing == Preprocessing(OXFORD.mean, (1 / 58,) * 3)
    own = plain.backbone.state_dict()
    for name, position in zip(CONV_NAMES, POSITIONS, strict=True):
        for entry in ("weight", "bias"):
            own[f"{name}.conv.{entry}"] = features[f"features.{position}.{entry}"].float()
    plain.backbone.load_state_dict(own)
    with torch.no_grad():
        theirs = plain.backbone(normalize(PIXELS, OXFORD))[0]
        ours = normalised.backbone(normalize(PIXELS, preprocessing))[0]
        before = normalised.backbone.conv1_1(normalize(PIXELS, preprocessing))
    torch.testing.assert_close(before.var(dim=(0, 2, 3)), torch.ones(64), atol=0.02, rtol=0)
    alive = theirs.amax(dim=(0, 2, 3)) > 0
    factors = (theirs * ours).sum(dim=(0, 2, 3)) / ours.square().sum(dim=(0, 2, 3)).clamp(min=1e-9)
    error = (theirs - factors[:, None, None] * ours)[:, alive]
    assert error.abs().max() < 0.02 * theirs.std()


@pytest.mark.slow
def test_wider_network_is_rejected(features):
    with pytest.raises(CheckpointError, match=r"has no channels for model\.width 2; set 1\.0 or less"):
        start_from_features(SSD300(2, "backbone", 2.0), features, PIXELS, "features.pth")
