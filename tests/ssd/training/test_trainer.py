"""The training loop: what it begins before it is needed."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import train
from data.loading.workers import WatchedLoader
from ssd.system.distributed import World
from ssd.system.errors import UserError
from ssd.system.stop import Stopped, StopRequest
from ssd.training import trainer, validate
from ssd.training.checkpoints import Checkpoints
from ssd.training.run_log import RecordFile, RunLog
from ssd.training.step import StepOutput, TrainStep
from ssd.training.trainer import Trainer
from ssd.weights.checkpoint import TrainState, load_checkpoint
from tests.ssd.training.test_restarts import small
from tests.ssd.training.test_update import SCHEDULE
from tests.test_train import records


@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_the_next_evaluation_is_the_first_one_that_is_made(every):
    schedule = replace(SCHEDULE, iterations=20, eval_every=every)
    for iteration in range(20):
        first = next(later for later in range(iteration + 1, 21) if schedule.evaluates_at(later))
        assert schedule.next_evaluation(iteration) == first


@pytest.mark.parametrize("rank", [0, 1])
def test_the_sums_of_all_processes_continue_in_the_main_one_alone(rank):
    """A train record adds up what every process has: sums that each of them took up would count twice."""
    step = SimpleNamespace(world=World(rank, 2), device=torch.device("cpu"))
    state = TrainState({}, [], {}, {}, iteration=5, window=torch.tensor([3.0, 4.0]), grad_norms=torch.tensor([6.0, 2.0]))
    given: tuple[Any, ...] = (step, SCHEDULE, state, None, None, [], None, None)
    resumed = Trainer(*given)
    assert resumed.window.tolist() == ([3.0, 4.0] if rank == 0 else [0.0, 0.0])
    assert resumed.grad_norms.tolist() == [6.0, 2.0]  # the same in all processes, and never added up


@pytest.mark.slow
def test_the_photos_of_an_evaluation_are_begun_while_the_network_trains(tmp_path, shapes_root, monkeypatch):
    """Two steps ahead, of evaluations after steps 3 and 5."""
    monkeypatch.setattr(trainer, "AHEAD", 2)
    monkeypatch.setattr(validate, "write_report", lambda *_: None)
    steps: list[None] = []
    begun: list[int] = []  # steps done when a loader starts; below 0: when an evaluation is over
    start, evaluated = WatchedLoader.__iter__, RunLog.evaluated
    monkeypatch.setattr(WatchedLoader, "__iter__", lambda self: begun.append(len(steps)) or start(self))
    monkeypatch.setattr(RunLog, "step", lambda _: steps.append(None))
    monkeypatch.setattr(RunLog, "evaluated", lambda *given: begun.append(-len(steps)) or evaluated(*given))
    config = small(tmp_path, shapes_root, train={"iterations": 5}, eval={"every": 3})
    assert train.main(["--config", str(config)]) == 0
    assert [event for event in begun if event] == [1, -3, 3, -5]  # those before the first step are others
    assert [record["iteration"] for record in records(tmp_path, "eval")] == [3, 5]


def fit(folder: Path, figures: list[tuple[float, float]], patience: int | None = None, resume: bool = False) -> tuple[int, int]:
    """A run with an evaluation after each step, of a figure and a loss that are made up, and without a network.

    Returns:
        The iterations of last.pt and best.pt.
    """
    step = Mock(world=World(), device=torch.device("cpu"), return_value=StepOutput(torch.zeros(2), torch.tensor(1.0)))
    step.updater.first_non_finite.return_value = None
    step.updater.state.return_value = {}
    step.updater.average = None
    folder.mkdir(exist_ok=True)
    last, best = folder / "last.pt", folder / "best.pt"
    state = load_checkpoint(last) if resume else TrainState({}, ["cat"], {}, {})
    schedule = replace(SCHEDULE, iterations=state.iteration + len(figures), eval_every=1, patience=patience)
    made_up = iter([SimpleNamespace(mean_ap=figure, loss=loss) for figure, loss in figures])
    run = Trainer(step, schedule, state, Checkpoints(folder, 0), Mock(), [], lambda *_: next(made_up), StopRequest())  # pyright: ignore
    run.fit(iter(lambda: None, 0))
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
def test_of_equal_figures_the_lower_validation_loss_is_the_better(tmp_path, figures, best):
    assert fit(tmp_path / "whole", figures)[1] == best
    for each in figures:  # the same, with a restart before each step
        _, resumed = fit(tmp_path / "parts", [each], resume=each is not figures[0])
    assert resumed == best


def test_patience_begins_when_something_was_found(tmp_path):
    worse = [(0.0, 5.0 + i) for i in range(6)]
    assert fit(tmp_path / "nothing", worse, patience=2) == (6, 1)
    assert fit(tmp_path / "found", [*worse, (0.1, 9.0), (0.1, 9.0), (0.0, 9.0), (0.5, 1.0)], patience=2) == (9, 7)


def test_patience_counts_from_the_last_better_evaluation(tmp_path):
    assert fit(tmp_path, [(0.2, 1.0), (0.1, 1.0), (0.3, 1.0), (0.1, 1.0), (0.3, 0.9), (0.1, 1.0)], patience=2) == (6, 5)
    assert fit(tmp_path, [(0.2, 1.0), (0.9, 1.0)], patience=2, resume=True) == (7, 5)  # the second one in a row


FULL = OSError(28, "No room", "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyError("a fault"), UserError("a photo is gone"), FULL, Stopped(15)])
def test_whatever_ends_a_run_what_it_learned_is_saved(tmp_path, shapes_root, monkeypatch, capsys, error):
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
def test_what_fails_before_anything_is_learned_leaves_no_checkpoint(tmp_path, shapes_root, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TrainStep, "__call__", full)
    assert train.main(["--config", str(small(tmp_path, shapes_root))]) == 1
    assert "out of memory" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints/last.pt").exists()
