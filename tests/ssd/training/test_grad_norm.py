"""The norm of the gradient in train records: its mean over the steps since the last one."""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch

import train
from ssd.batch import Batch, pad_targets
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preprocessing import IMAGENET, normalize
from ssd.system.distributed import World
from ssd.training import validate
from ssd.training.optimizer import make_optimizer
from ssd.training.step import StepOutput, TrainStep, Updater
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.ssd.training.test_restarts import small
from tests.ssd.training.test_update import SCHEDULE
from tests.test_train import records


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_a_step_tells_the_norm_for_the_whole_batch(clip):
    """Two micro-batches with different numbers of positives: the gradient is that of all photos at once."""
    torch.manual_seed(0)
    model = SSD300(4, width=0.05)
    plain = deepcopy(model)
    images = torch.randint(0, 256, (2, 300, 300, 3), dtype=torch.uint8)
    targets = [torch.tensor([[0.1, 0.1, 0.6, 0.7, 0]]), torch.tensor([[0.3, 0.2, 0.9, 0.5, 1], [0.1, 0.6, 0.3, 0.9, 2]])]
    updater = Updater(model, make_optimizer(model, "sgd", 0.1, 0.9, 0.01), SCHEDULE, torch.float32, clip_grad_norm=clip)
    step = TrainStep(model, MultiBoxLoss(), IMAGENET, updater, torch.float32, World(), False)
    batches = [Batch(images[i : i + 1], pad_targets([targets[i]]), torch.tensor([i])) for i in range(2)]
    taken = step(batches, 0)
    losses = MultiBoxLoss()(plain.train()(normalize(images, IMAGENET)), targets)
    sum(losses).backward()  # pyright: ignore[reportAttributeAccessIssue]
    squares = sum(float((parameter.grad.double() ** 2).sum()) for parameter in plain.parameters() if parameter.grad is not None)
    assert taken.grad_norm.item() == pytest.approx(squares**0.5, rel=1e-4)
    assert taken.losses.tolist() == pytest.approx([loss.item() for loss in losses], rel=1e-5)


@pytest.fixture
def _no_report(monkeypatch):
    """To draw it takes longer than to train."""
    monkeypatch.setattr(validate, "write_report", lambda *_: None)


def trained(folder: Path, root: Path, *arguments: str, resume: Path | None = None) -> list[float | None]:
    """The norms in the records of a run of three steps, which may go back to an earlier checkpoint."""
    again = ["--resume", str(resume), "--overwrite"] if resume else []
    config = small(folder, root, train={"iterations": 3}, eval={"every": 100}, checkpoint={"every": 1, "keep": 3})
    assert train.main(["--config", str(config), *arguments, *again]) == 0
    return [record["grad_norm"] for record in records(folder)]


@pytest.mark.slow
@pytest.mark.usefixtures("_no_report")
def test_the_mean_of_the_steps_whether_resumed_or_not(tmp_path, shapes_root):
    every = trained(tmp_path / "every", shapes_root, "log_every=1")
    assert len(set(every)) == 3
    whole = trained(tmp_path / "whole", shapes_root, "log_every=2")
    assert whole == [pytest.approx(sum(every[:2]) / 2), pytest.approx(every[2])]
    first = tmp_path / "whole/run/checkpoints/iteration_00000001.pt"
    kept = tmp_path / "first.pt"
    shutil.copy(first, kept)
    assert trained(tmp_path / "whole", shapes_root, "log_every=2", resume=kept) == whole
    # A checkpoint of before they were counted: the mean of those since.
    state = load_checkpoint(kept)
    state.grad_norms = None
    save_checkpoint(kept, state)
    assert trained(tmp_path / "whole", shapes_root, "log_every=2", resume=kept)[0] == pytest.approx(every[1])


@pytest.mark.slow
@pytest.mark.usefixtures("_no_report")
def test_steps_that_float16_leaves_out_do_not_count(tmp_path, shapes_root, monkeypatch):
    """As if the gradient had been infinite in the first two of three steps."""
    norms: list[float] = []
    real = TrainStep.__call__

    def overflowing(self: TrainStep, micro_batches: list[Batch], iteration: int) -> StepOutput:
        taken = real(self, micro_batches, iteration)
        norms.append(taken.grad_norm.item())
        return taken._replace(grad_norm=torch.tensor(torch.inf)) if iteration < 2 else taken

    monkeypatch.setattr(TrainStep, "__call__", overflowing)
    assert trained(tmp_path, shapes_root, "log_every=2") == [None, pytest.approx(norms[2])]
