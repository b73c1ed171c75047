"""torchvision's ResNet-50: the same weights give the same maps."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet50, vgg16

from ssd.architecture import ARCHITECTURES
from ssd.config.schema import ModelConfig
from ssd.preprocessing import IMAGENET
from ssd.weights.checkpoint import CheckpointError
from ssd.weights.pretrained import build_network, load_pretrained
from ssd.weights.sources import hub_file, torchvision_url
from tests.helpers.networks import with_statistics

NAME = "ssd300_resnet50"


@torch.no_grad()
def test_maps_match_torchvisions_resnet50(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    theirs = with_statistics(resnet50(weights=None))
    torch.save(theirs.state_dict(), hub_file(torchvision_url("imagenet", ARCHITECTURES[NAME], batch_norm=True)))
    model = build_network(3, ModelConfig(architecture=NAME)).eval()
    assert load_pretrained(model, "imagenet", ["a", "b"]) == (IMAGENET, [])
    block = theirs.layer3[0]
    block.conv2.stride = block.downsample[0].stride = (1, 1)  # NVIDIA's change
    x = images = torch.randn(1, 3, 300, 300)
    expected: dict[str, torch.Tensor] = {}
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
        x = theirs.get_submodule(name)(x)
        expected[name] = x.clone()  # ReLU works in place
    found: dict[str, torch.Tensor] = {}
    for name in model.backbone.layer_names:
        layer = model.backbone.get_submodule(name)
        layer.register_forward_hook(lambda _, __, output, name=name: found.update({name: output.clone()}))
    (last,) = model.backbone(images)
    for name, their_name in (("conv1", "bn1"), ("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3")):
        difference = ((found[name] - expected[their_name]).abs().max() / expected[their_name].abs().max()).item()
        print(f"{name} {list(found[name].shape)}: largest difference {difference:.1e} of the largest value")
        assert difference < 1e-6
    assert torch.equal(last, found["layer3"])
    assert last.shape == (1, 1024, 38, 38)


def test_channels_and_initial_weights():
    """1024 → 512, 512, 256, 256, 256, the inner ones half, but 256 in the second pair, as NVIDIA has them."""
    torch.manual_seed(0)
    model = build_network(21, ModelConfig(architecture=NAME, pretrained="none"))
    channels = [block.conv.out_channels for block in model.extras.children() if isinstance(block, nn.Sequential)]
    assert channels == [256, 512, 256, 512, 128, 256, 128, 256, 128, 256]
    # He normal with fan_out, as in torchvision: sqrt(2 / (256 · 9)), also within a block.
    assert model.backbone.get_submodule("layer3.1.conv2.conv").weight.std().item() == pytest.approx(0.02946, rel=0.02)


def test_other_weights_are_refused(tmp_path):
    model = build_network(3, ModelConfig(architecture=NAME, pretrained="none"))
    torch.save(vgg16(weights=None).features.state_dict(), tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match=r"vgg\.pth: is not torchvision's ResNet-50: conv1\.weight is missing"):
        load_pretrained(model, str(tmp_path / "vgg.pth"), ["a", "b"])
