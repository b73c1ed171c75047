"""The dry run's prediction, compared with runs on a fake clock that only known parts advance."""

import re
import time
from types import SimpleNamespace

import pytest

import train
from data.loading import dataset
from ssd.autoconfig import timing
from ssd.autoconfig.timing import Timings
from ssd.inference.predict import PixelModel
from ssd.training import checkpoints
from ssd.training.step import TrainStep
from tests.helpers.runs import write_config

pytestmark = pytest.mark.slow

# Seconds for a step, the prediction of a batch, a checkpoint, decoding a photo, and the start.
STEP, PREDICTION, CHECKPOINT, PHOTO, START = 2, 3, 5, 0.5, 20


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)

    def takes(owner, name: str, seconds: float) -> None:
        as_it_is = getattr(owner, name)

        def slow(*arguments, **options):
            clock.now += seconds
            return as_it_is(*arguments, **options)

        monkeypatch.setattr(owner, name, slow)

    takes(TrainStep, "__call__", STEP)
    takes(PixelModel, "__call__", PREDICTION)
    takes(checkpoints, "save_checkpoint", CHECKPOINT)
    takes(timing, "save_checkpoint", CHECKPOINT)
    takes(dataset, "read_image", PHOTO)
    takes(train, "load_config", START)
    return clock


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_a_run_takes_as_long_as_its_dry_run_predicts(clock, tmp_path, shapes_root, capsys, cache):
    """20 steps of 4 from 24 photos, two evaluations of 8 photos, eight checkpoints, four of them numbered."""
    config = write_config(
        tmp_path, shapes_root, train={"iterations": 20}, checkpoint={"every": 5, "keep": 1}, eval={"every": 10},
        data={"cache": cache, "workers": 0},
    )  # fmt: skip
    assert train.main(["--config", str(config), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    hours, minutes, seconds = map(int, re.search(r"the run will take about (\d+):(\d+):(\d+): 20 steps and 2", shown).groups())
    predicted = 3600 * hours + 60 * minutes + seconds
    decoded = 24 if cache == "ram" else 80
    by_hand = START + 20 * STEP + 2 * (2 * PREDICTION + 8 * PHOTO) + 8 * CHECKPOINT + decoded * PHOTO
    began = clock.now
    assert train.main(["--config", str(config)]) == 0
    taken = clock.now - began
    assert by_hand <= taken < 1.4 * by_hand  # pictures and report read some photos again
    assert predicted == pytest.approx(taken, rel=0.1)
    assert re.search(r"start 20 s, an evaluation \d+\.\d s, a checkpoint 5\.0 s, report \d+\.\d s", shown)


def test_the_parts_add_up():
    timings = Timings(start=10, step=0.5, decoding=4, checkpoint=2, evaluation=30, end=6)
    assert timings.of_run(iterations=100, evaluations=5, checkpoints=3) == 10 + 4 + 6 + 50 + 5 * 30 + (3 + 10) * 2
