"""The training loop: what it begins before it is needed."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import train
from data.workers import WatchedLoader
from ssd.system.distributed import World
from ssd.training import outcome, trainer
from ssd.training.run_log import RunLog
from ssd.training.trainer import Trainer
from ssd.weights.checkpoint import TrainState
from tests.ssd.training.test_restarts import small
from tests.ssd.training.test_update import SCHEDULE
from tests.test_survival import signals_as_they_were
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
    monkeypatch.setattr(outcome, "write_report", lambda *_: None)
    steps: list[None] = []
    begun: list[int] = []  # steps done when a loader starts; below 0: when an evaluation is over
    start, evaluated = WatchedLoader.__iter__, RunLog.evaluated
    monkeypatch.setattr(WatchedLoader, "__iter__", lambda self: begun.append(len(steps)) or start(self))
    monkeypatch.setattr(RunLog, "step", lambda _: steps.append(None))
    monkeypatch.setattr(RunLog, "evaluated", lambda *given: begun.append(-len(steps)) or evaluated(*given))
    config = small(tmp_path, shapes_root, train={"iterations": 5}, eval={"every": 3})
    with signals_as_they_were():
        assert train.main(["--config", str(config)]) == 0
    assert [event for event in begun if event] == [1, -3, 3, -5]  # those before the first step are others
    assert [record["iteration"] for record in records(tmp_path, "eval")] == [3, 5]
