from math import sqrt

import pytest
import torch
from torchvision.models.detection import ssd300_vgg16

from ssd.backbones.vgg import LAYER_NAMES, VGG16
from ssd.model import SSD300, L2Norm

EXTRAS = [f"extras.conv{number}_{half}" for number in (6, 7, 8, 9) for half in (1, 2)]


def test_parameters_and_shapes():
    model = SSD300(21).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_285_486
    with torch.no_grad():
        loc, conf, dbox_list = model(torch.zeros(2, 3, 300, 300))
    assert loc.shape == (2, 8732, 4)
    assert conf.shape == (2, 8732, 21)
    assert dbox_list.shape == (8732, 4)


@pytest.mark.parametrize(
    ("batch_norm", "width", "conv4_3_norm"),
    [("none", 0.25, "l2"), ("backbone", 0.25, "l2"), ("backbone", 0.1, "none"), ("all", 0.1, "none"), ("all", 0.1, "batch")],
)
def test_options_keep_the_form(batch_norm, width, conv4_3_norm):
    model = SSD300(4, batch_norm=batch_norm, width=width, conv4_3_norm=conv4_3_norm)
    full = sum(parameter.numel() for parameter in SSD300(4).parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) < full / 4
    loc, conf, _ = model(torch.randn(1, 3, 300, 300))  # a batch of one has to train as well
    assert loc.shape == (1, 8732, 4)
    assert conf.shape == (1, 8732, 4)
    (loc.sum() + conf.sum()).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing


@pytest.mark.parametrize("batch_norm", ["none", "backbone", "all"])
def test_where_batch_normalisation_stands(batch_norm):
    """In front of a norm no convolution has a bias; what sees one cell has no norm."""
    model = SSD300(3, batch_norm=batch_norm, width=0.05, conv4_3_norm="none")
    features = [*(f"backbone.{name}" for name in LAYER_NAMES), *EXTRAS[:-1]]
    heads = [f"{head}.{number}" for head in ("loc", "conf") for number in range(5)]
    expected = {"none": [], "backbone": features, "all": features + heads}[batch_norm]
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert norms == {f"{name}.norm" for name in expected}
    without_bias = {name for name, module in model.named_modules() if getattr(module, "bias", 0) is None}
    assert without_bias == {f"{name}.conv" for name in expected}
    assert not any(name.startswith("conv4_3_norm") for name in model.state_dict())


def test_normalised_heads_predict_what_the_same_convolutions_with_the_norm_folded_in_do():
    torch.manual_seed(0)
    model = SSD300(3, batch_norm="all", width=0.05, conv4_3_norm="none").eval()
    state = model.state_dict()
    for name in state:
        if ".norm." in name and name.startswith(("loc", "conf")) and state[name].ndim:
            torch.nn.init.uniform_(state[name], 0.5, 2.0)
    folded = {name: value for name, value in state.items() if not name.startswith(("loc", "conf")) or ".5." in name}
    for head in (f"{part}.{number}" for part in ("loc", "conf") for number in range(5)):
        factor = state[f"{head}.norm.weight"] / (state[f"{head}.norm.running_var"] + 1e-5).sqrt()
        folded[f"{head}.weight"] = state[f"{head}.conv.weight"] * factor[:, None, None, None]
        folded[f"{head}.bias"] = state[f"{head}.norm.bias"] - factor * state[f"{head}.norm.running_mean"]
    plain = SSD300(3, batch_norm="backbone", width=0.05, conv4_3_norm="none").eval()
    plain.load_state_dict(folded)
    images = torch.randn(2, 3, 300, 300)
    with torch.no_grad():
        for ours, expected in zip(model(images), plain(images), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_weights_at_the_start_by_hand():
    """He's spread (the fan of the outputs) where a norm and a ReLU follow, Xavier's elsewhere."""
    torch.manual_seed(0)
    model = SSD300(21, batch_norm="all", width=0.5)
    assert model.backbone.conv4_2.conv.weight.std().item() == pytest.approx(sqrt(2 / (256 * 9)), rel=0.02)
    assert model.extras.conv7_2.conv.weight.std().item() == pytest.approx(sqrt(2 / (128 * 9)), rel=0.02)
    for weight, inputs, outputs in (
        (model.extras.conv9_2.conv.weight, 64, 128), (model.conf[1].conv.weight, 512, 126), (model.loc[5].weight, 128, 16),
    ):  # fmt: skip
        assert weight.shape[:2] == (outputs, inputs)
        assert weight.std().item() == pytest.approx(sqrt(2 / (9 * (inputs + outputs))), rel=0.02)
        assert weight.abs().max().item() <= sqrt(6 / (9 * (inputs + outputs)))  # uniform
    plain = SSD300(3, width=0.25).backbone.conv4_2.conv
    assert plain.weight.std().item() == pytest.approx(sqrt(2 / (9 * 256)), rel=0.02)
    assert not plain.bias.any()


def torchvision_name(name: str) -> str:
    """Our names → torchvision's for the same weights."""
    part, *rest = name.split(".")
    entry = rest[-1]
    if part == "backbone":
        conv = rest[0]
        if conv in LAYER_NAMES[:10]:
            return f"backbone.features.{(0, 2, 5, 7, 10, 12, 14, 17, 19, 21)[LAYER_NAMES.index(conv)]}.{entry}"
        place = {"conv5_1": "1", "conv5_2": "3", "conv5_3": "5", "fc6": "7.1", "fc7": "7.3"}[conv]
        return f"backbone.extra.0.{place}.{entry}"
    if part == "conv4_3_norm":
        return "backbone.scale_weight"
    if part == "extras":
        number, half = int(rest[0][4]), int(rest[0][6])
        return f"backbone.extra.{number - 5}.{2 * (half - 1)}.{entry}"
    return f"head.{'regression_head' if part == 'loc' else 'classification_head'}.module_list.{rest[0]}.{entry}"


def test_equals_torchvision_with_the_same_weights():
    torch.manual_seed(0)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21).eval()
    ours = SSD300(21).eval()
    state = theirs.state_dict()
    converted = {name: state[torchvision_name(name)] for name in ours.state_dict()}
    assert len(set(map(torchvision_name, converted))) == len(state)  # each of theirs is used
    ours.load_state_dict(converted)
    images = torch.randn(2, 3, 300, 300)
    with torch.no_grad():
        loc, conf, _ = ours(images)
        head = theirs.head(list(theirs.backbone(images).values()))
    torch.testing.assert_close(loc, head["bbox_regression"], atol=1e-4, rtol=0)
    torch.testing.assert_close(conf, head["cls_logits"], atol=1e-4, rtol=0)


def test_l2_norm_by_hand_and_at_zero():
    layer = L2Norm(2, scale=20)
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(layer(x).flatten(), torch.tensor([12.0, 16.0]))
    zero = torch.zeros(1, 2, 3, 3, requires_grad=True)
    layer(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_l2_norm_of_few_features_is_that_of_float64(dtype):
    """In every precision; a cell of zeros gives zeros."""
    layer = L2Norm(8)
    x = torch.rand(2, 8, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, :, 1] = 0
    x[1, :, :, 0] *= 1e-3
    x[1, 1:, 2] = 0
    expected = 20 * x.double() / (x.double().square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
    with torch.no_grad():
        result = layer(x)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, atol=1e-4, rtol=4 * torch.finfo(dtype).eps)
    x.requires_grad_()
    torch.relu(layer(torch.relu(x))).sum().backward()  # the layer stands behind a ReLU
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


def test_relu_behind_the_pool_is_the_relu_before_it():
    backbone = VGG16(width=0.1)
    x = torch.randn(1, 3, 300, 300)
    late, _ = backbone(x)
    for stage in (1, 2, 3):
        pool = backbone.pool3 if stage == 3 else backbone.pool
        x = pool(torch.relu(backbone._stage(stage, x)))
    early = torch.relu(backbone._stage(4, x))
    assert torch.equal(late, early)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"num_classes": 1}, "expected background and at least one class"),
        ({"width": 0.0}, "width: expected a positive factor"),
        ({"batch_norm": True}, "batch_norm: expected none or backbone or all, got True"),
        ({"conv4_3_norm": "l1"}, "conv4_3_norm: expected l2 or batch or none, got 'l1'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        SSD300(**{"num_classes": 3, **arguments})


@pytest.mark.parametrize("last, behind", [("conv2_2", "conv3_1"), ("conv4_3", "conv5_1"), ("fc7", None)])
def test_frozen_layers_keep_weights_and_statistics(last, behind):
    model = SSD300(3, batch_norm="backbone", width=0.05)
    model.freeze(last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loc, conf, _ = model(torch.randn(2, 3, 300, 300))
    (loc.square().mean() + conf.square().mean()).backward()
    optimizer.step()
    changed = {name.rsplit(".", 2)[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    names = LAYER_NAMES
    kept = names[: names.index(last) + 1]
    assert not changed & {f"backbone.{name}" for name in kept}
    assert {f"backbone.{name}" for name in names[len(kept) :]} <= changed
    assert all(parameter.grad is None for name in kept for parameter in model.backbone.get_submodule(name).parameters())
    assert behind is None or model.backbone.get_submodule(behind).training
    assert not model.backbone.get_submodule(last).training


def test_nothing_is_saved_for_the_backward_pass_of_frozen_layers():
    def saved(last: str | None) -> int:
        model = SSD300(3, width=0.05)
        if last:
            model.freeze(last)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model.train()(torch.randn(1, 3, 300, 300))
        return sum(sizes)

    assert saved("fc7") < 0.2 * saved(None)
    assert saved("conv3_3") < 0.5 * saved(None)


def test_an_unknown_layer_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"expected one of conv1_1, .*fc7, got 'conv9_2'"):
        SSD300(3, width=0.05).freeze("conv9_2")
