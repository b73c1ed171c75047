"""Distillation: the loss against NumPy loops, teachers that do not fit, and runs with a teacher."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from data.shapes import CLASSES
from ssd.batch import Batch, pad_targets
from ssd.compress.distill import FACTOR, MIN_WEIGHT, Teacher, distillation_loss, load_teacher
from ssd.config.schema import VOC_CLASSES, ModelConfig
from ssd.dbox import spec_of
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET, OXFORD
from ssd.system.distributed import World
from ssd.training.optimizer import make_optimizer
from ssd.training.step import TrainStep, Updater
from ssd.weights.checkpoint import CheckpointError, TrainState, load_checkpoint, save_checkpoint
from tests.helpers.runs import assert_same_weights, records, schedule_of, without_timing, write_config


def predictions(seed: int, batch: int = 2, dboxes: int = 60, columns: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    conf = 3 * torch.randn(batch, dboxes, columns, generator=generator)
    conf[..., 0] += 6  # mostly background, as in a trained network
    return torch.randn(batch, dboxes, 4, generator=generator) * 2, conf


def by_loops(loc, conf, teacher_loc, teacher_conf, num_positives) -> float:
    """The formula, a DBox at a time, in float64."""
    total = 0.0
    rows = (values.flatten(0, 1).double().numpy() for values in (loc, conf, teacher_loc, teacher_conf))
    for ours, scores, theirs, targets in zip(*rows, strict=True):
        q, p = (np.exp(each - each.max()) / np.exp(each - each.max()).sum() for each in (scores, targets))
        weight = max(1 - p[0], 1 - q[0])
        if weight > MIN_WEIGHT:
            total += weight * (p * np.log(p / q)).sum()
            difference = np.abs(ours - theirs)
            total += (1 - p[0]) * np.where(difference < 1, difference**2 / 2, difference - 0.5).sum()
    return FACTOR * total / max(num_positives, 1)


@pytest.mark.parametrize("positives", [0.0, 1.0, 7.0])
def test_loss_equals_loops(positives, monkeypatch):
    (loc, conf), (teacher_loc, teacher_conf) = predictions(0), predictions(1)
    given = loc, conf, teacher_loc, teacher_conf, torch.tensor(positives)
    expected = by_loops(*given[:4], positives)
    assert distillation_loss(*given).item() == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the way of GPUs: all DBoxes, most with weight 0
    assert distillation_loss(*given).item() == pytest.approx(expected, rel=1e-5)


def test_agreement_costs_nothing_and_disagreement_has_gradients():
    loc, conf = (values.requires_grad_() for values in predictions(0))
    same = loc.detach().clone(), conf.detach().clone()
    assert distillation_loss(loc, conf, *same, torch.tensor(3.0)).item() == pytest.approx(0, abs=1e-6)
    distillation_loss(loc, conf, *predictions(1), torch.tensor(3.0)).backward()
    for values in (loc, conf):
        assert values.grad is not None
        assert values.grad.abs().sum() > 0


def test_shared_background_counts_nothing():
    conf = torch.tensor([[[9.0, 0.0, 0.0]]])
    loc = torch.zeros(1, 1, 4)
    assert distillation_loss(loc, conf, loc + 100, conf + torch.tensor([0.0, 1.0, -1.0]), torch.tensor(1.0)).item() == 0
    seen = torch.tensor([[[0.0, 2.0, 0.0]]])
    assert distillation_loss(loc, seen, loc + 100, conf, torch.tensor(1.0)).item() > 1  # a false detection is corrected


def saved(path: Path, classes: list[str], dboxes: str = "voc", architecture: str = "ssd300") -> Path:
    torch.manual_seed(3)
    model = SSD300(len(classes) + 1, "backbone", 0.05, spec_of(dboxes))
    options = {"architecture": architecture, "pretrained": "none", "batch_norm": "backbone", "width": 0.05, "dboxes": dboxes}
    save_checkpoint(path, TrainState(model.state_dict(), classes, OXFORD.to_plain(), {"model": options}))
    return path


STUDENT = ModelConfig(pretrained="none")


def teacher_from(source: str | Path, *classes: str) -> Teacher:
    return load_teacher(source, STUDENT, classes, torch.device("cpu"), torch.float32)


def test_columns_follow_class_names(tmp_path):
    path = saved(tmp_path / "teacher.pt", ["tv", "Cat", "dog"])
    teacher = teacher_from(path, "cat", "dog", "tvmonitor")
    images = torch.randint(0, 256, (2, 300, 300, 3), dtype=torch.uint8)
    loc, conf = teacher(images)
    mean = torch.tensor(load_checkpoint(path).preprocessing["mean"])
    with torch.no_grad():
        their_loc, their_conf, _ = teacher.network((images.float() - mean).permute(0, 3, 1, 2))
    torch.testing.assert_close(loc, their_loc, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(conf, their_conf[..., [0, 2, 3, 1]], atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


@pytest.mark.parametrize(
    "classes, dboxes, message",
    [
        (["cat", "dog"], "voc", r"train\.teacher: .*pt: has the classes cat, dog, data\.classes has cat, dog, tv; name a"),
        (["cat", "dog", "emu"], "voc", "has the classes"),
        (["tv", "cat", "television"], "voc", "has the classes"),  # two of ours would get the same column
        (["tv", "cat", "dog"], "coco", "has other DBoxes; set model.dboxes: coco"),
    ],
)
def test_teachers_that_do_not_fit(tmp_path, classes, dboxes, message):
    path = saved(tmp_path / "teacher.pt", classes, dboxes)
    with pytest.raises(CheckpointError, match=message):
        teacher_from(path, "cat", "dog", "tv")


def test_teachers_that_are_no_checkpoint(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    for name in ("missing.pt", "text.pt"):
        with pytest.raises(CheckpointError, match=rf"train\.teacher: .*{name}"):
            teacher_from(tmp_path / name, "cat")


def test_teachers_with_values_that_are_not_finite(tmp_path):
    path = saved(tmp_path / "teacher.pt", ["cat", "dog", "tv"])
    state = load_checkpoint(path)
    state.weights["backbone.fc7.conv.weight"][0] = float("nan")
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match=r"teacher\.pt: has values that are not finite in backbone\.fc7\.conv\.weight"):
        teacher_from(path, "cat", "dog", "tv")


@pytest.mark.parametrize("compiling", [False, True])
def test_predictions_that_are_not_finite_are_not_hidden(compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    (loc, conf), teacher = predictions(0), predictions(1)
    conf[0, 5] = float("nan")
    assert distillation_loss(loc, conf, *teacher, torch.tensor(3.0)).isnan()


def test_shipped_weights_teach_by_name():
    assert teacher_from("half", *VOC_CLASSES).network.width == 0.5


def step_with(teacher, model) -> TrainStep:
    updater = Updater(model, make_optimizer(model, "sgd", 0.1, 0.9, 0.0), schedule_of(), torch.float32)
    return TrainStep(model, MultiBoxLoss(), IMAGENET, updater, torch.float32, World(), False, teacher)


def test_a_step_adds_the_teacher(tmp_path):
    """Micro-batches give the losses and the gradient of the whole batch, and the third loss is the teacher's."""
    teacher_of = saved(tmp_path / "teacher.pt", ["a", "b", "c"])
    images = torch.randint(0, 256, (2, 300, 300, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = [torch.tensor([[0.1, 0.1, 0.6, 0.7, 0]]), torch.tensor([[0.3, 0.2, 0.9, 0.5, 1], [0.1, 0.6, 0.3, 0.9, 2]])]
    parts = [Batch(images[i : i + 1], pad_targets([targets[i]]), torch.tensor([i])) for i in range(2)]
    taken = []
    for batches in (parts, [Batch(images, pad_targets(targets), torch.arange(2))]):
        torch.manual_seed(0)
        model = SSD300(4, width=0.05)
        taken.append(step_with(teacher_from(teacher_of, "a", "b", "c"), model)(batches, 0))
    torch.manual_seed(0)
    plain = step_with(None, SSD300(4, width=0.05))(parts, 0)
    torch.testing.assert_close(taken[0].losses, taken[1].losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(taken[0].grad_norm, taken[1].grad_norm, rtol=1e-3, atol=0)
    torch.testing.assert_close(taken[0].losses[:2], plain.losses, rtol=1e-5, atol=1e-6)
    assert taken[0].losses[2] > 0
    assert taken[0].grad_norm != plain.grad_norm


@pytest.fixture
def run_with_teacher(tmp_path, shapes_root):
    """Six iterations, a record for all of them, and a checkpoint after four."""
    path = saved(tmp_path / "teacher.pt", list(CLASSES))
    train_entries = {"iterations": 6, "teacher": str(path)}
    config = write_config(tmp_path, shapes_root, train=train_entries, checkpoint={"every": 4}, log_every=6)
    assert train.main(["--config", str(config)]) == 0
    return config


def resume(config: Path, *overrides: str) -> None:
    middle = config.parent / "run/checkpoints/iteration_00000004.pt"
    assert train.main(["--config", str(config), "--resume", str(middle), "--overwrite", *overrides]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("restored_signals", "no_report")
def test_a_run_with_a_teacher_resumes_bit_for_bit(run_with_teacher, capsys):
    """Also in the middle of the mean that a record shows."""
    folder = run_with_teacher.parent
    shutil.copytree(folder / "run", folder / "whole/run")
    resume(run_with_teacher)
    shown = capsys.readouterr().out
    assert "iterations 4 to 6" in shown
    assert ", distillation " in shown
    assert_same_weights(folder / "whole", folder)
    assert without_timing(folder / "whole") == without_timing(folder)
    assert records(folder)[0]["loss_d"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("restored_signals", "no_report")
def test_a_teacher_may_be_new_or_gone_after_a_resume(run_with_teacher, capsys):
    """Its record then covers the iterations since: a mean of the right number of steps."""
    folder = run_with_teacher.parent
    at_rest = "train.lr=1e-12"
    resume(run_with_teacher, at_rest)
    (both,) = records(folder)
    resume(run_with_teacher, at_rest, "train.teacher=null")
    (without,) = records(folder)
    assert "loss_d" not in without
    resume(run_with_teacher, at_rest, "train.teacher=null", "checkpoint.every=1", "train.iterations=5")
    assert train.main(["--config", str(run_with_teacher), "--resume", "auto", at_rest]) == 0
    assert records(folder)[-1]["loss_d"] == pytest.approx(both["loss_d"], rel=0.5)
    own = folder / "run/checkpoints/best.pt"
    assert train.main(["--config", str(run_with_teacher), "--overwrite", f"train.teacher={own}"]) == 2
    assert "this run replaces its own checkpoints" in capsys.readouterr().err


def test_a_bad_teacher_is_reported_before_the_data_is_read(tmp_path, capsys):
    config = write_config(tmp_path, tmp_path / "missing", train={"iterations": 1, "teacher": str(tmp_path / "none.pt")})
    for dry in ([], ["--dry-run"]):
        assert train.main(["--config", str(config), *dry]) == 2
        assert "train.teacher: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("restored_signals", "no_report")
@pytest.mark.parametrize("optimizer, limit, is_warned", [("sgd", None, True), ("sgd", 10.0, False), ("adamw", None, False)])
def test_large_gradients_are_warned_of(tmp_path, shapes_root, capsys, optimizer, limit, is_warned):
    teacher = saved(tmp_path / "teacher.pt", list(CLASSES))
    entries = {"iterations": 1, "optimizer": optimizer, "clip_grad_norm": limit, "teacher": str(teacher)}
    assert train.main(["--config", str(write_config(tmp_path, shapes_root, train=entries))]) == 0
    assert ("SGD may diverge; set train.clip_grad_norm: 10" in capsys.readouterr().out) == is_warned
