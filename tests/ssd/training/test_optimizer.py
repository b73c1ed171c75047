import math

import pytest
import torch

from ssd.model import SSD300
from ssd.training.optimizer import ModelEMA, make_optimizer, set_lr


def test_biases_are_doubled_and_undecayed():
    model = SSD300(3, batch_norm="backbone", width=0.1)
    optimizer = make_optimizer(model, "sgd", lr=0.1, momentum=0.0, weight_decay=0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    set_lr(optimizer, 0.01)
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[parameter]] = (group["lr"], group["weight_decay"])
    assert seen.keys() == set(names.values())
    assert seen["backbone.conv1_1.conv.weight"] == (0.01, 0.5)
    assert seen["loc.0.bias"] == (0.02, 0.0)
    assert seen["backbone.conv1_1.norm.bias"] == (0.01, 0.0)
    assert seen["conv4_3_norm.weight"] == (0.01, 0.0)
    # One step by hand: w - lr (g + decay w), b - 2 lr g.
    weight, bias = model.conf[0].weight, model.conf[0].bias
    torch.nn.init.ones_(bias)
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before - 0.01 * (1 + 0.5 * before))
    torch.testing.assert_close(bias.detach(), torch.full_like(bias, 0.98))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_found_inf_skips_weights_and_state(kind):
    # The updater relies on it to skip a bad gradient without synchronising.
    layer = torch.nn.Conv2d(1, 1, 1)
    optimizer = make_optimizer(layer, kind, 0.1, 0.9, 0.1)
    for bad in (False, True):
        before = [parameter.detach().clone() for parameter in layer.parameters()]
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, math.nan if bad else 1.0)
        optimizer.found_inf = torch.tensor(float(bad))
        optimizer.step()
        same = [torch.equal(parameter, old) for parameter, old in zip(layer.parameters(), before, strict=True)]
        assert all(same) if bad else not any(same)


def test_model_ema_by_hand():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = ModelEMA(layer, decay=0.5)
    for iteration in range(30):
        torch.nn.init.constant_(layer.weight, float(iteration))
        average.update(layer, iteration)
    expected = 0.0
    for iteration in range(30):
        decay = min(0.5, (1 + iteration) / (10 + iteration))
        expected = decay * expected + (1 - decay) * iteration
    assert average.state["weight"].item() == pytest.approx(expected)
    young = ModelEMA(layer, decay=0.5)  # of 29
    torch.nn.init.zeros_(layer.weight)
    young.update(layer, 0)
    assert young.state["weight"].item() == pytest.approx(2.9)  # a tenth of what was
    torch.nn.init.constant_(layer.weight, 29.0)
    with average.applied_to(layer):
        assert layer.weight.item() == pytest.approx(expected)
    assert layer.weight.item() == 29


def test_statistics_are_averaged_and_counts_are_taken():
    norm = torch.nn.BatchNorm1d(1, momentum=1.0)
    average = ModelEMA(norm, decay=0.5)
    for value in (5.0, 8.0):
        norm(torch.full((4, 1), value))
    average.update(norm, 0)
    assert average.state["running_mean"].item() == pytest.approx(0.9 * 8)
    assert average.state["num_batches_tracked"] == 2


def test_the_backbone_learns_slower_and_frozen_layers_not_at_all():
    model = SSD300(3, batch_norm="backbone", width=0.05)
    model.freeze("conv3_3")
    optimizer = make_optimizer(model, "sgd", 1e-2, 0.9, 5e-4, backbone_lr=0.1)
    set_lr(optimizer, 1e-2)
    lr = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert id(model.backbone.conv3_3.conv.weight) not in lr
    assert lr[id(model.backbone.conv4_1.conv.weight)] == pytest.approx(1e-3)
    assert lr[id(model.backbone.fc7.norm.bias)] == pytest.approx(1e-3)
    assert lr[id(model.conf[0].weight)] == pytest.approx(1e-2)
    assert lr[id(model.conf[0].bias)] == pytest.approx(2e-2)
    assert len(lr) == sum(parameter.requires_grad for parameter in model.parameters())
