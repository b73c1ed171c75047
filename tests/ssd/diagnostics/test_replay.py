"""Replaying a step with the network of its training."""

import pytest
import torch

from data.loading.dataset import DetectionDataset
from data.shapes import CLASSES
from ssd.batch import Targets
from ssd.compress.distill import distillation_loss
from ssd.config.file import load_config
from ssd.diagnostics.replay import NonFiniteStep, replay
from ssd.preprocessing import normalize
from ssd.training.build import build_criterion, build_model
from ssd.training.datasets import load_data
from ssd.training.run import Run
from ssd.weights.checkpoint import TrainState, save_checkpoint
from tests.helpers.runs import write_config


@pytest.mark.parametrize("freeze", [None, "conv3_3"])
def test_losses_and_gradients_equal_those_of_training(tmp_path, shapes_root, freeze):
    config = load_config(write_config(tmp_path, shapes_root), [])
    config = config.model_copy(update={"model": config.model.model_copy(update={"freeze": freeze})})
    run = Run.alone(config)
    model, preprocessing = build_model(run, None)
    for value in model.buffers():  # statistics that differ from any batch's
        if value.is_floating_point() and value.dim() == 1:
            value.add_(0.3)
    samples = DetectionDataset(load_data(run).train, 300, preprocessing.fill)
    batch = samples.__getitems__([(0, 0), (0, 1), (0, 2)])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    rows = replay(NonFiniteStep(0, batch, ["a", "b", "c"], preprocessing, weights), config, run.device, run.dtype)

    criterion = build_criterion(config, torch.device("cpu"))
    loc, conf, dbox_list = model.train()(normalize(batch.images, preprocessing, run.device))
    for i, (shown, norm, path) in enumerate(rows):
        labels = batch.targets.labels[i : i + 1]
        own = Targets(batch.targets.boxes[i : i + 1], labels, (labels[0] >= 0).nonzero().flatten())
        losses = criterion((loc[i : i + 1], conf[i : i + 1], dbox_list), own)
        model.zero_grad()
        (losses[0] + losses[1]).backward(retain_graph=True)
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        assert path == "abc"[i]
        assert shown == pytest.approx([loss.item() for loss in losses], rel=1e-5)
        assert norm == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-4)


def test_a_teacher_has_its_loss_too(tmp_path, shapes_root):
    config = load_config(write_config(tmp_path, shapes_root), [])
    run = Run.alone(config)
    model, preprocessing = build_model(run, None)
    state = TrainState(model.state_dict(), list(CLASSES), preprocessing.to_plain(), config.model_dump(mode="json"))
    save_checkpoint(tmp_path / "teacher.pt", state)
    taught = config.model_copy(update={"train": config.train.model_copy(update={"teacher": str(tmp_path / "teacher.pt")})})
    batch = DetectionDataset(load_data(run).train, 300, preprocessing.fill).__getitems__([(0, 0), (0, 1)])
    step = NonFiniteStep(
        0, batch, ["a", "b"], preprocessing, {name: value.clone() for name, value in model.state_dict().items()}
    )
    images = normalize(batch.images, preprocessing, run.device)
    with torch.no_grad():
        theirs, ours = model.eval()(images), model.train()(images)
    rows = replay(step, taught, run.device, run.dtype)
    for i, (plain, row) in enumerate(zip(replay(step, config, run.device, run.dtype), rows, strict=True)):
        assert row[0][:2] == pytest.approx(plain[0], rel=1e-5)
        num_positives = build_criterion(config, run.device).match(batch.targets, model.dbox_list).conf[i].gt(0).sum()
        loc, conf, teacher_loc, teacher_conf = (values[i : i + 1] for values in (*ours[:2], *theirs[:2]))
        expected = distillation_loss(loc, conf, teacher_loc, teacher_conf, num_positives)
        assert row[0][2] == pytest.approx(expected.item(), rel=1e-4)
        assert row[1] != pytest.approx(plain[1], rel=1e-3)
