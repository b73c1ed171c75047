"""The training loop with fake steps, evaluations and clock."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssd.system.distributed import World
from ssd.system.stop import Stopped
from ssd.training import trainer
from ssd.training.build import RunParts
from ssd.training.schedule import Schedule
from ssd.training.step import StepOutput
from ssd.training.trainer import NonFiniteError, Trainer
from ssd.weights.checkpoint import TrainState
from tests.helpers.runs import run_of


@pytest.fixture(autouse=True)
def _made_up_evaluations(monkeypatch):
    """A loop's validation set evaluates itself."""
    monkeypatch.setattr(trainer, "val_loader", lambda _, val_set: val_set.batches)
    monkeypatch.setattr(trainer, "evaluate_photos", lambda _, val_set, __, ___, batches: val_set.evaluate(batches))


class Loop:
    """A trainer, and what it printed and saved; the losses of iteration i, counted from 0, are i + 1 and 10."""

    def __init__(self, maps: list[float], state: TrainState | None = None, **changes: Any) -> None:
        self.maps = maps  # of the evaluations to come
        self.said: list[str] = []
        self.records: list[tuple[int, int, dict[str, Any], float]] = []
        self.saved: list[tuple[int, bool, bool]] = []  # iteration, numbered, best
        self.states: list[TrainState] = []
        self.norms: dict[int, float] = {}
        self.non_finite: int | None = None
        self.before_step: Callable[[int], object] = lambda _: None
        self.updater = SimpleNamespace(state=dict, ema=None, first_non_finite=lambda _: self.non_finite)
        self.evaluated: list[int] = []
        names: Any = ("say", "step", "trained", "evaluated", "illustrate")
        log: Any = SimpleNamespace(**dict.fromkeys(names, lambda *_: None))
        log.say, log.trained = self.said.append, lambda *values: self.records.append(values)
        log.evaluated = lambda _, iteration, __: self.evaluated.append(iteration)
        checkpoints: Any = SimpleNamespace(write=self.write, folder=Path("checkpoints"))
        self.val_set: Any = SimpleNamespace(
            batches=[], evaluate=lambda _: SimpleNamespace(mean_ap=self.maps.pop(0), loss=1.0, class_scores=dict)
        )
        evaluation = {"every": changes.pop("eval_every", 2), "patience": changes.pop("patience", None)}
        sections = {"log_every": changes.pop("log_every", 2), "checkpoint": {"every": changes.pop("checkpoint_every", 100)}}
        train = {"iterations": 5, "batch_size": 4, "lr": 0.1, "warmup": 0, "milestones": [], **changes}
        run = run_of(train=train, eval=evaluation, **sections)
        self.stop = run.stop
        itself: Any = self
        parts = RunParts(self.val_set, self.val_set, Schedule(run.config.train, run.config.eval.every, 8), itself)
        self.trainer = Trainer(run, parts, state or TrainState({}, ["cat"], {}, {}), checkpoints, log)

    model, preprocessing, num_losses = torch.nn.Linear(1, 1), None, 2

    def __call__(self, _: object, iteration: int) -> StepOutput:
        self.before_step(iteration)
        return StepOutput(torch.tensor([iteration + 1.0, 10.0]), torch.tensor(self.norms.get(iteration, 1.0)))

    def write(self, state: TrainState, numbered: bool, best: bool) -> None:
        self.saved.append((state.iteration, numbered, best))
        self.states.append(state)

    def fit(self, batches: Iterator[Any] | None = None) -> Any:
        return self.trainer.fit(iter(lambda: None, 0) if batches is None else batches)


@pytest.fixture
def _two_seconds(monkeypatch):
    """Two steps take two seconds, half a second of it waiting for data."""

    @contextmanager
    def within() -> Iterator[None]:
        yield

    clock = SimpleNamespace(waiting=within, paused=within, lap=lambda: (2.0, 0.5, 2))
    monkeypatch.setattr(trainer, "Clock", lambda: clock)


@pytest.mark.usefixtures("_two_seconds")
def test_a_record_averages_the_steps_since_the_last_one():
    loop = Loop([0.1], eval_every=100, lr=0.5, warmup=6)
    loop.norms = {0: 3.0, 1: math.inf, 2: math.inf, 3: math.nan}
    loop.fit()
    assert [(epoch, iteration) for epoch, iteration, *_ in loop.records] == [(1, 2), (2, 4), (3, 5)]
    values = [values for _, _, values, _ in loop.records]
    losses = [(each["loss"], each["loss_l"], each["loss_c"]) for each in values]
    assert losses == [(11.5, 1.5, 10), (13.5, 3.5, 10), (15, 5, 10)]
    assert [each["grad_norm"] for each in values] == [3, None, 1]  # of the finite ones
    assert [(each["images_per_s"], each["data_wait"]) for each in values] == [(4, 0.25)] * 3
    assert [left for *_, left in loop.records] == [3, 1, 0]
    assert [each["lr"] for each in values] == [loop.trainer.schedule.lr_at(iteration) for iteration in (1, 3, 4)]


@pytest.mark.parametrize("start", [2, None])
def test_a_resumed_record_includes_the_saved_sums(start):
    """Steps 3 and 4, of which step 3 precedes the restart; old states lack the iteration of the last record."""
    state = TrainState(
        {}, ["cat"], {}, {}, iteration=3, loss_sums=torch.tensor([3.0, 10.0]), grad_norms=torch.tensor([5.0, 1.0]),
        recorded_at=start,
    )  # fmt: skip
    loop = Loop([0.1], state, iterations=4, eval_every=100)
    kept = loop.trainer.state()
    assert (kept.loss_sums.tolist(), kept.grad_norms.tolist(), kept.recorded_at) == ([3, 10], [5, 1], 2)
    loop.fit()
    ((_, iteration, values, _),) = loop.records
    assert (iteration, values["loss_l"], values["loss_c"], values["grad_norm"]) == (4, 3.5, 10, 3)
    assert loop.states[-1].recorded_at == 4


def test_checkpoints_are_written_when_due_and_the_best_is_marked():
    """Evaluations after steps 2, 4 and 5; until one has a mAP, the last state is the best."""
    loop = Loop([math.nan, 0.3, 0.2], checkpoint_every=3)
    best = loop.fit()
    assert (best.iteration, best.evaluation.mean_ap) == (4, 0.3)
    assert loop.evaluated == [2, 4, 5]
    assert loop.saved == [
        (2, False, True), (2, False, True), (3, True, True), (4, False, True), (4, False, True), (5, False, False),
        (5, False, False),
    ]  # fmt: skip
    last = loop.states[-1]
    assert (last.best_map, last.evaluated_at, last.not_improved) == (0.3, 5, 1)
    assert loop.said[0] == "evaluation after iteration 2, epoch 1"


def test_a_map_of_0_counts():
    assert Loop([0.0, 0.0, 0.0]).fit().iteration == 2


def test_an_equal_map_is_no_improvement_and_patience_ends_a_run():
    loop = Loop([0.3, 0.3, 0.1, 0.9], iterations=20, patience=2)
    assert loop.fit().iteration == 2
    assert loop.evaluated == [2, 4, 6]
    assert loop.said[-1] == "eval.patience: no improvement in 2 evaluations; training ends at iteration 6"


@pytest.mark.parametrize("best_map", [0.5, 0.0])
def test_a_best_evaluation_from_before_the_restart_is_not_returned(best_map):
    state = TrainState({}, ["cat"], {}, {}, iteration=4, best_map=best_map, best_loss=1.0, evaluated_at=4)
    loop = Loop([best_map], state)
    assert loop.fit() is None
    assert loop.evaluated == [5]  # that of iteration 4 is made already
    assert loop.saved == [(5, False, False)] * 2  # before that evaluation and after it


def test_an_interrupted_evaluation_is_repeated_first():
    loop = Loop([0.4, 0.5], TrainState({}, ["cat"], {}, {}, iteration=4, evaluated_at=2))
    loop.before_step = lambda _: loop.evaluated.append(0)
    loop.fit()
    assert loop.evaluated == [4, 0, 5]


def test_without_a_map_the_last_state_is_the_best():
    loop = Loop([math.nan])
    loop.trainer.schedule = replace(loop.trainer.schedule, eval_every=100)
    best = loop.fit()
    assert best.iteration == 5
    assert loop.saved[-1] == (5, False, True)


def test_the_averaged_weights_are_evaluated():
    applied = []

    @contextmanager
    def applied_to(model: torch.nn.Module) -> Iterator[None]:
        applied.append(model)
        yield

    loop = Loop([0.1], eval_every=100)
    loop.updater.ema = SimpleNamespace(applied_to=applied_to)
    loop.fit()
    assert applied == [loop.model]


def test_a_stop_request_ends_the_loop_after_the_step_with_a_checkpoint():
    loop = Loop([], eval_every=100)
    loop.before_step = lambda iteration: setattr(loop.stop, "signal", 15 * (iteration == 2))
    with pytest.raises(Stopped) as stopped:
        loop.fit()
    assert stopped.value.exit_code == 143
    assert [iteration for iteration, *_ in loop.saved] == [3]


def test_progress_is_saved_when_data_fails():
    def two_batches() -> Iterator[None]:
        yield from (None, None)
        raise ValueError("gone")

    loop = Loop([], eval_every=100)
    with pytest.raises(ValueError, match="gone"):
        loop.fit(two_batches())
    assert [iteration for iteration, *_ in loop.saved] == [2]
    loop = Loop([], eval_every=100)
    loop.trainer.world = World(size=2)  # the others know nothing of it
    loop.trainer.is_asked_to_stop = lambda: False
    loop.trainer._record = lambda _: None
    with pytest.raises(ValueError, match="gone"):
        loop.fit(two_batches())
    assert [iteration for iteration, *_ in loop.saved] == [2]  # all processes have the same weights


def test_non_finite_weights_are_never_saved():
    loop = Loop([], eval_every=100, log_every=100)
    loop.non_finite = 1
    with pytest.raises(NonFiniteError, match=r"^iteration 2: the loss or its gradient is not finite; the weights are unch"):
        loop.trainer.save()
    with pytest.raises(NonFiniteError):
        loop.fit()
    assert loop.saved == []


def test_a_non_finite_loss_ends_the_loop_at_the_next_record():
    loop = Loop([], eval_every=100)
    steps: list[int] = []
    loop.before_step = steps.append
    loop.non_finite = 0
    with pytest.raises(NonFiniteError):
        loop.fit()
    assert (steps, loop.records) == ([0, 1], [])


def test_each_evaluation_uses_its_own_loader():
    begun: list[int] = []

    class Batches:
        def __iter__(self) -> Iterator[Any]:
            begun.append(loop.trainer.now.iteration)
            return iter([len(begun)])

    loop = Loop([])
    seen: list[list[Any]] = []
    loop.trainer.val_batches = Batches()
    loop.val_set.evaluate = lambda batches: (
        seen.append(list(batches)) or SimpleNamespace(mean_ap=0.1, loss=1.0, class_scores=dict)
    )
    loop.fit()
    assert begun == [0, 2, 4]  # evaluations follow steps 2, 4 and 5
    assert seen == [[1], [2], [3]]
