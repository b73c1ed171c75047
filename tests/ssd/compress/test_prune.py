"""Pruning, compared with NumPy on small layers, and on networks in which every second channel is a duplicate."""

import numpy as np
import pytest
import torch
from torch import nn

from ssd.architecture import Conv
from ssd.backbones.conv_block import ConvBlock
from ssd.compress.prune import (
    Reader,
    Weights,
    _convolved,
    _patches,
    _places,
    _refitted,
    _write,
    folded,
    layers_of,
    most_useful,
    prune,
)
from ssd.model import SSD300

COARSE = 3 * torch.randn(3, 3, 25, 25, generator=torch.Generator().manual_seed(0))
IMAGES = nn.functional.interpolate(COARSE, 300, mode="bicubic")


def drawn(width: float, batch_norm: str) -> SSD300:
    """Return a network with random weights and statistics."""
    torch.manual_seed(0)
    network = SSD300(3, batch_norm, width)
    for name, value in network.state_dict().items():
        if name.endswith((".bias", "norm.running_mean")):
            value.normal_(std=0.1)
        if name.endswith(("norm.weight", "norm.running_var")):
            value.uniform_(0.5, 2)
    return network.eval()


def doubled(network: SSD300, width: float, batch_norm: str) -> SSD300:
    """Return an equivalent network with every channel duplicated."""
    wide = SSD300(3, batch_norm, width).eval()
    heads = ("loc.", "conf.")
    state = wide.state_dict()
    for name, value in network.state_dict().items():
        twice = value
        if value.ndim and not name.startswith(heads):
            twice = twice.repeat_interleave(2, dim=0)
        if value.ndim == 4 and name != "backbone.conv1_1.conv.weight":
            twice = twice.repeat_interleave(2, dim=1) / 2
        state[name] = twice
    # Duplication multiplies the L2 norm by √2, and the heads halve their weights.
    state["conv4_3_norm.weight"] = state["conv4_3_norm.weight"] * 2**0.5
    wide.load_state_dict(state)
    return wide


@pytest.mark.parametrize("batch_norm", ["none", "backbone"])
def test_duplicate_channels_are_pruned_without_loss(batch_norm):
    narrow = drawn(0.125, batch_norm)
    wide = doubled(narrow, 0.25, batch_norm)
    torch.manual_seed(1)
    pruned = SSD300(3, batch_norm, 0.125)
    fits = list(prune(wide, pruned, IMAGES))
    assert [fit.name for fit in fits] == [layer.name for layer in layers_of(wide)]
    assert max(fit.unexplained for fit in fits) < 0.05
    assert all(fit.kept * 2 == fit.of for fit in fits if not fit.name.startswith(("loc", "conf")))
    with torch.no_grad():
        for ours, theirs in zip(pruned.eval()(IMAGES)[:2], wide(IMAGES)[:2], strict=True):
            assert (ours - theirs).square().mean() < 0.01 * theirs.var()


@pytest.mark.parametrize("batch_norm", ["none", "backbone", "all"])
def test_same_width_changes_nothing(batch_norm):
    wide = drawn(0.125, batch_norm)
    torch.manual_seed(1)
    pruned = SSD300(3, batch_norm, 0.125)
    assert not any(fit.unexplained for fit in prune(wide, pruned, IMAGES[:2]))
    for name, value in wide.state_dict().items():
        assert torch.equal(pruned.state_dict()[name], value), name


def test_the_cheapest_channel_is_removed_first():
    """Compared with NumPy's least squares on every possible set of remaining channels."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 7, 4))  # places, channels, taps
    inputs[:, 2] = inputs[:, 0] + inputs[:, 5] + 0.1 * inputs[:, 2]  # replaceable by others
    inputs[:, 3] *= 0.1
    inputs -= inputs.mean(axis=0)
    weights = [rng.normal(size=(28, 5)), rng.normal(size=(28, 2))]
    gone: list[int] = []
    for _ in range(4):
        errors = {}
        for channel in set(range(7)) - set(gone):
            rest = inputs[:, sorted(set(range(7)) - {*gone, channel})].reshape(400, -1)
            errors[channel] = 0.0
            for weight in weights:
                wanted = inputs.reshape(400, -1) @ weight
                left = np.linalg.lstsq(rest, wanted, rcond=None)[1].sum()
                errors[channel] += left / np.square(wanted).sum()
        gone.append(min(errors, key=lambda c: errors[c]))
    flat = torch.from_numpy(inputs.reshape(400, -1)).float()
    taps = torch.arange(28).view(7, 4)
    readers = [Reader(taps, flat.T @ flat, torch.from_numpy(weight).float()) for weight in weights]
    assert {0, 2, 5} - set(gone) != {0, 2, 5}
    assert most_useful(readers, 3).tolist() == sorted(set(range(7)) - set(gone))


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 6, "padding": 6}, {"stride": (2, 3), "padding": (0, 2), "dilation": (2, 1)}],
)
def test_patches_match_the_convolution(options):
    conv = nn.Conv2d(4, 5, 3, **options)
    inputs = torch.randn(2, 4, 19, 23)
    places = _places(inputs, conv, torch.Generator().manual_seed(0))
    patches, photo = _patches(inputs, conv, places)
    outputs = conv(inputs)[places[:, 0], :, places[:, 1], places[:, 2]]
    torch.testing.assert_close(patches @ conv.weight.flatten(1).T + conv.bias, outputs)
    assert photo.tolist() == places[:, 0].tolist()


def test_refitting_against_numpy():
    """A layer that lost an input gets the weights of NumPy's least squares on the fitted photos, up to the ridge."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, 3, padding=1)
    whole = torch.randn(16, 4, 12, 12)
    whole[:, 3] = 0.7 * whole[:, 0] - 0.2 * whole[:, 1] + 0.1 * torch.randn(16, 12, 12)
    lost = torch.randn(2, 4, 3, 3)
    targets = nn.functional.conv2d(whole, lost, torch.tensor([0.3, -2.0]), padding=1)
    start = Weights(lost[:, :3], torch.tensor([0.3, -2.0]))
    fit, unexplained = _refitted(whole[:, :3], targets, start, conv, torch.Generator().manual_seed(0))
    fitted = [i for i in range(16) if i % 4 != 3]
    padded = np.pad(whole[fitted, :3].numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    places = np.ndindex(len(fitted), 12, 12)
    rows = [[*padded[photo, :, y : y + 3, x : x + 3].ravel(), 1.0] for photo, y, x in places]
    expected = np.linalg.lstsq(np.array(rows), targets[fitted].permute(0, 2, 3, 1).reshape(-1, 2).numpy(), rcond=None)[0]
    np.testing.assert_allclose(fit.weight.flatten(1).T, expected[:-1], atol=2e-3)
    np.testing.assert_allclose(fit.bias, expected[-1], atol=2e-3)
    assert 0.001 < unexplained < 0.02  # from the noise
    error = targets - nn.functional.conv2d(whole[:, :3], start.weight, start.bias, padding=1)
    assert unexplained < 0.1 * float(error.var() / targets.var())


@pytest.mark.parametrize("num_photos", [4, 8, 16])
def test_old_weights_stay_if_no_refit_is_better(num_photos):
    """On maps of one pixel, from which few photos give too few positions for a fit."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(64, 2, 1)
    inputs, noise = (torch.randn(num_photos, channels, 1, 1, generator=generator) for channels in (64, 2))
    old = Weights(torch.randn(2, 64, 1, 1, generator=generator), torch.tensor([0.3, -2.0]))
    targets = nn.functional.conv2d(inputs, *old) + noise
    fit, unexplained = _refitted(inputs, targets, old, conv, generator)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(fit, old, strict=True))
    held_out = slice(3, None, 4)
    variance = (targets[held_out] - targets[held_out].mean(dim=0)).square().sum().clamp(min=1e-12)
    assert unexplained == pytest.approx(float(noise[held_out].square().sum() / variance), rel=1e-4)


def test_folding_a_norm():
    block = ConvBlock(3, Conv("layer", 4), batch_norm=True).eval()
    nn.init.uniform_(block.norm.running_var, 0.5, 2)
    nn.init.normal_(block.norm.running_mean)
    nn.init.normal_(block.norm.weight)
    weights = folded(nn.ModuleDict({"block": block}), "block")
    images = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(nn.functional.conv2d(images, *weights, padding=1), block(images))


def test_norm_is_calibrated():
    """Each channel has variance 1 before the norm and its original output after it, even if it is constant."""
    torch.manual_seed(0)
    block = ConvBlock(3, Conv("layer", 4), batch_norm=True).eval()
    network = nn.ModuleDict({"block": block})
    fit = Weights(torch.randn(4, 3, 3, 3), torch.tensor([5.0, -3.0, 0.0, 2.0]))
    fit.weight[3] = 0
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        _write(network, "block", fit, _convolved(images, fit, block.conv))
        inner = block.conv(images)
        torch.testing.assert_close(block.norm(inner), nn.functional.conv2d(images, *fit, padding=1), atol=1e-4, rtol=0)
    torch.testing.assert_close(inner[:, :3].var(dim=(0, 2, 3)), torch.ones(3), atol=0.01, rtol=0)
    torch.testing.assert_close(block.norm.running_mean[:3], inner[:, :3].mean(dim=(0, 2, 3)), atol=0.01, rtol=0)
    torch.testing.assert_close(folded(network, "block").weight, fit.weight, atol=0, rtol=1e-6)
