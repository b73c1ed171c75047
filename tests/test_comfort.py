"""Early stopping, a time limit, dry runs and the automatic batch size."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ssd.autoconfig import timing
from ssd.system import memory
from ssd.training import build
from ssd.training.run_log import RunLog
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers.runs import LONG, assert_same_weights, records, write_config
from train import main


@pytest.fixture
def run(capsys) -> Callable[..., str]:
    """Run the command in this process and return its output."""

    def command(config: Path, *arguments: str) -> str:
        capsys.readouterr()
        assert main(["--config", str(config), *arguments]) == 0
        return capsys.readouterr().out

    return command


def test_patience_ends_a_run_that_does_not_improve(tmp_path, shapes_root, run):
    train = {"batch_size": 4, "iterations": 50, "lr": 1e-12, "optimizer": "sgd"}
    model = {"batch_norm": "none"}  # its statistics would change without learning
    evaluation = {"every": 2, "patience": 2, "batch_size": 8}
    config = write_config(tmp_path, shapes_root, train=train, eval=evaluation, model=model)
    shown = run(config)
    assert "eval.patience: no improvement in 2 evaluations; training ends at iteration 6" in shown
    assert [record["iteration"] for record in records(tmp_path, "eval")] == [2, 4, 6]
    assert shown.splitlines()[-1].startswith("mAP@0.5")
    assert (tmp_path / "run/report.html").exists()
    # A resumed run knows that it has ended, and continues only with more patience.
    assert "training ends at iteration 6" in run(config, "--resume", "auto")
    run(config, "--resume", "auto", "eval.patience=3")
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration == 8


@dataclass
class Timer:
    """A timer that a test fires."""

    seconds: float
    function: Callable[[], None]
    daemon: bool = False
    is_ended: bool = False

    def start(self) -> None:
        assert self.daemon  # otherwise the process would wait for it

    def cancel(self) -> None:
        self.is_ended = True

    def join(self) -> None:
        assert self.is_ended


def test_a_time_limit_saves_and_ends(tmp_path, shapes_root, run, monkeypatch):
    """The limit is reached in the third step."""
    timers: list[Timer] = []
    steps: list[None] = []

    def goes_off() -> None:
        assert not timers[0].is_ended
        timers[0].function()

    monkeypatch.setattr(threading, "Timer", lambda *given: timers.append(Timer(*given)) or timers[-1])
    monkeypatch.setattr(RunLog, "step", lambda self: steps.append(None) or (len(steps) == 3 and goes_off()))
    config = write_config(tmp_path, shapes_root, **LONG, checkpoint={"every": 10_000, "keep": 1})
    shown = run(config, "train.max_hours=0.5")
    assert [(timer.seconds, timer.is_ended) for timer in timers] == [(1800, True)]  # ended with the command
    assert shown.splitlines()[-1] == "train.max_hours reached; resume with --resume auto"
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration == 3
    shown = run(config, "--resume", "auto", "train.iterations=4")
    assert f"resuming from {tmp_path}/run/checkpoints/last.pt, iteration 3" in shown
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration == 4


def test_a_dry_run_writes_nothing(tmp_path, shapes_root, run, monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.1)
    shown = run(write_config(tmp_path, shapes_root), "--dry-run", "data.fraction=0.5")
    assert re.search(r"a step takes \d+\.\d\d s \(.* images/s\) and \d+\.\d GiB of memory", shown)
    assert re.search(r"the run will take about 0:00:\d\d: 9 steps and 1 evaluations", shown)
    assert 4 < int(re.search(r"data: (\d+) photos", shown)[1]) < 20  # a fraction of them
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_report")
def test_the_automatic_batch_size(tmp_path, shapes_root, monkeypatch, capsys, run):
    monkeypatch.setattr(build, "DEFAULT_BATCH_SIZE", 8)
    model, train = {"batch_norm": "none"}, {"iterations": 1, "batch_size": "auto"}
    alone = write_config(tmp_path / "alone", shapes_root, model=model, train={**train, "batch_size": 8})
    run(alone)
    config = write_config(tmp_path / "auto", shapes_root, model=model, train=train)
    assert "train.batch_size: auto: 8 photos in 1 step(s) of 8" in run(config)
    assert_same_weights(tmp_path / "alone", tmp_path / "auto")  # trial steps leave no trace
    small = write_config(tmp_path / "small", shapes_root, model=model, train=train)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_memory", lambda: 2**26)
        steps = int(re.search(r"auto: 8 photos in (\d+) step", run(small))[1])
    assert steps > 1
    resolved = yaml.safe_load((tmp_path / "small/run/config.yaml").read_text())["train"]
    assert (resolved["batch_size"], resolved["accumulate"]) == (8, steps)
    # A resumed run keeps its batch size, whatever the memory is now.
    assert "iteration 1" in run(small, "--resume", "auto", "train.iterations=2")
    assert load_checkpoint(tmp_path / "small/run/checkpoints/last.pt").config["train"]["accumulate"] == steps
    assert run(small, "--eval-only").splitlines()[-1].startswith("mAP@0.5")
    state = load_checkpoint(tmp_path / "small/run/checkpoints/last.pt")
    state.config = {"model": state.config["model"]}  # as in converted weights
    save_checkpoint(tmp_path / "converted.pt", state)
    assert "mAP@0.5" in run(small, "--eval-only", "--resume", str(tmp_path / "converted.pt"))
    monkeypatch.setattr(memory, "free_memory", lambda: 2**10)
    assert main(["--config", str(small), "--overwrite"]) == 2
    assert "train.batch_size: auto: a step on a single photo needs more" in capsys.readouterr().err
    # Nothing is overwritten before all checks pass.
    assert load_checkpoint(tmp_path / "small/run/checkpoints/last.pt").iteration == 2
