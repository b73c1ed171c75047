"""The training loop in real runs, and the choice of the best checkpoint."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import train
from data.loading.loader import WatchedLoader
from ssd.batch import Batch
from ssd.system.distributed import World
from ssd.system.errors import UserError
from ssd.system.stop import Stopped
from ssd.training import trainer
from ssd.training.build import RunParts
from ssd.training.checkpoints import Checkpoints
from ssd.training.run_log import RecordFile, RunLog
from ssd.training.schedule import Schedule
from ssd.training.step import StepOutput, TrainStep
from ssd.training.trainer import Trainer
from ssd.weights.checkpoint import TrainState, load_checkpoint, save_checkpoint
from tests.helpers.runs import records, run_of, schedule_of, small, trained


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.usefixtures("_made_up_evaluations")
def test_only_the_main_process_restores_the_saved_sums(rank):
    """A train record sums over the processes, so sums restored by each would count twice."""
    state = TrainState({}, [], {}, {}, iteration=5, loss_sums=torch.tensor([3.0, 4.0]), grad_norms=torch.tensor([6.0, 2.0]))
    run, nothing = run_of(), Mock(num_losses=2)
    run.world = World(rank, 2)
    resumed = Trainer(run, RunParts(nothing, nothing, schedule_of(), nothing), state, nothing, nothing)
    assert resumed.loss_sums.tolist() == ([3.0, 4.0] if rank == 0 else [0.0, 0.0])
    assert resumed.grad_norms.tolist() == [6.0, 2.0]  # the same in all processes, and never added up


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_evaluation_workers_start_while_the_network_trains(tmp_path, shapes_root, monkeypatch):
    """Two steps ahead, of evaluations after steps 3 and 5."""
    monkeypatch.setattr(trainer, "AHEAD", 2)
    steps: list[None] = []
    begun: list[int] = []  # steps done when a loader starts; below 0: when an evaluation is over
    start, evaluated = WatchedLoader.__iter__, RunLog.evaluated
    monkeypatch.setattr(WatchedLoader, "__iter__", lambda self: begun.append(len(steps)) or start(self))
    monkeypatch.setattr(RunLog, "step", lambda _: steps.append(None))
    monkeypatch.setattr(RunLog, "evaluated", lambda *given: begun.append(-len(steps)) or evaluated(*given))
    trained(tmp_path, shapes_root, train={"iterations": 5}, eval={"every": 3})
    assert [event for event in begun if event] == [1, -3, 3, -5]  # those before the first step are others
    assert [record["iteration"] for record in records(tmp_path, "eval")] == [3, 5]


@pytest.fixture
def _made_up_evaluations(monkeypatch):
    """The validation set is an iterator over evaluations."""
    monkeypatch.setattr(trainer, "val_loader", lambda *_: [])
    monkeypatch.setattr(trainer, "evaluate_photos", lambda _, val_set, *__: next(val_set))


def fit(folder: Path, figures: list[tuple[float, float]], patience: int | None = None, resume: bool = False) -> tuple[int, int]:
    """A run without a network that is evaluated after each step, with a made-up mAP and loss.

    Returns:
        The iterations of last.pt and best.pt.
    """
    step = Mock(return_value=StepOutput(torch.zeros(2), torch.tensor(1.0)), num_losses=2)
    step.updater.first_non_finite.return_value = None
    step.updater.state.return_value = {}
    step.updater.ema = None
    folder.mkdir(exist_ok=True)
    last, best = folder / "last.pt", folder / "best.pt"
    state = load_checkpoint(last) if resume else TrainState({}, ["cat"], {}, {})
    run = run_of(train={"iterations": state.iteration + len(figures), "batch_size": 4}, eval={"every": 1, "patience": patience})
    made_up: Any = iter([SimpleNamespace(mean_ap=figure, loss=loss, class_scores=dict) for figure, loss in figures])
    parts = RunParts(made_up, made_up, Schedule(run.config.train, 1, 8), step)
    Trainer(run, parts, state, Checkpoints(folder, 0), Mock()).fit(iter(lambda: None, 0))  # pyright: ignore
    return load_checkpoint(last).iteration, load_checkpoint(best).iteration


@pytest.mark.parametrize(
    "figures, best",
    [
        ([(1.0, 3.0), (1.0, 2.0), (1.0, 2.5)], 2),
        ([(0.0, 5.0), (0.0, 4.0), (0.0, 6.0)], 2),
        ([(0.5, 3.0), (0.4, 1.0), (0.5 - 1e-12, 2.0)], 3),  # rounding decides nothing
        ([(0.5, 2.0), (0.5, 2.0 - 1e-5), (0.5, 2.0)], 1),
        ([(0.5, math.nan), (0.5, 2.0), (0.5, math.nan)], 2),
        ([(0.4, 1.0), (0.5, 3.0), (0.5, 3.0)], 2),
        ([(0.5, 1.0), (math.nan, 0.5), (0.5, 2.0)], 1),
    ],
)
@pytest.mark.usefixtures("_made_up_evaluations")
def test_equal_maps_are_ranked_by_validation_loss(tmp_path, figures, best):
    assert fit(tmp_path / "whole", figures)[1] == best
    for each in figures:  # the same, with a restart before each step
        _, resumed = fit(tmp_path / "parts", [each], resume=each is not figures[0])
    assert resumed == best


@pytest.mark.usefixtures("_made_up_evaluations")
def test_patience_begins_with_the_first_map_above_0(tmp_path):
    worse = [(0.0, 5.0 + i) for i in range(6)]
    assert fit(tmp_path / "nothing", worse, patience=2) == (6, 1)
    assert fit(tmp_path / "found", [*worse, (0.1, 9.0), (0.1, 9.0), (0.0, 9.0), (0.5, 1.0)], patience=2) == (9, 7)


@pytest.mark.usefixtures("_made_up_evaluations")
def test_patience_counts_from_the_last_improvement(tmp_path):
    assert fit(tmp_path, [(0.2, 1.0), (0.1, 1.0), (0.3, 1.0), (0.1, 1.0), (0.3, 0.9), (0.1, 1.0)], patience=2) == (6, 5)
    assert fit(tmp_path, [(0.2, 1.0), (0.9, 1.0)], patience=2, resume=True) == (7, 5)  # the second one in a row


FULL = OSError(28, "No room", "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyError("a fault"), UserError("a photo is gone"), FULL, Stopped(15)])
def test_progress_is_saved_whatever_ends_a_run(tmp_path, shapes_root, monkeypatch, capsys, error):
    step, write = TrainStep.__call__, RecordFile.write

    def fails_in_step(self, batches, iteration):
        if iteration == 2:
            raise error
        return step(self, batches, iteration)

    def fails_to_record(self, kind, epoch, iteration, values):
        if iteration == 2:
            raise error
        write(self, kind, epoch, iteration, values)

    if isinstance(error, OSError):
        monkeypatch.setattr(RecordFile, "write", fails_to_record)
    else:
        monkeypatch.setattr(TrainStep, "__call__", fails_in_step)
    config = small(tmp_path, shapes_root, train={"iterations": 5}, eval={"every": 100}, checkpoint={"every": 100})
    if isinstance(error, KeyError):
        with pytest.raises(KeyError) as raised:
            train.main(["--config", str(config), "log_every=1"])
        assert raised.value.__notes__ == ["saved at iteration 2", "resume with --resume auto"]
    else:
        assert train.main(["--config", str(config), "log_every=1"]) in (1, 2, 143)
        printed = capsys.readouterr()
        assert (printed.err or printed.out).splitlines()[-1].endswith("resume with --resume auto")
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration == 2


@pytest.mark.slow
def test_a_failure_before_the_first_step_leaves_no_checkpoint(tmp_path, shapes_root, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TrainStep, "__call__", full)
    assert train.main(["--config", str(small(tmp_path, shapes_root))]) == 1
    assert "out of memory" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints/last.pt").exists()


def grad_norms(folder: Path, root: Path, *arguments: str, resume: Path | None = None) -> list[float | None]:
    """The norms in the records of a run of three steps, which may go back to an earlier checkpoint."""
    again = ["--resume", str(resume), "--overwrite"] if resume else []
    config = small(folder, root, train={"iterations": 3}, eval={"every": 100}, checkpoint={"every": 1, "keep": 3})
    assert train.main(["--config", str(config), *arguments, *again]) == 0
    return [record["grad_norm"] for record in records(folder)]


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_grad_norm_is_the_mean_over_steps_even_when_resumed(tmp_path, shapes_root):
    every = grad_norms(tmp_path / "every", shapes_root, "log_every=1")
    assert len(set(every)) == 3
    whole = grad_norms(tmp_path / "whole", shapes_root, "log_every=2")
    assert whole == [pytest.approx(sum(every[:2]) / 2), pytest.approx(every[2])]
    first = tmp_path / "whole/run/checkpoints/iteration_00000001.pt"
    kept = tmp_path / "first.pt"
    shutil.copy(first, kept)
    assert grad_norms(tmp_path / "whole", shapes_root, "log_every=2", resume=kept) == whole
    # An old checkpoint without the sums: the mean since the restart.
    state = load_checkpoint(kept)
    state.grad_norms = None
    save_checkpoint(kept, state)
    assert grad_norms(tmp_path / "whole", shapes_root, "log_every=2", resume=kept)[0] == pytest.approx(every[1])


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_skipped_float16_steps_do_not_count(tmp_path, shapes_root, monkeypatch):
    """As if the gradient had been infinite in the first two of three steps."""
    norms: list[float] = []
    real = TrainStep.__call__

    def overflowing(self: TrainStep, micro_batches: list[Batch], iteration: int) -> StepOutput:
        taken = real(self, micro_batches, iteration)
        norms.append(taken.grad_norm.item())
        return taken._replace(grad_norm=torch.tensor(torch.inf)) if iteration < 2 else taken

    monkeypatch.setattr(TrainStep, "__call__", overflowing)
    assert grad_norms(tmp_path, shapes_root, "log_every=2") == [None, pytest.approx(norms[2])]
