"""The length of a first run, and its settings."""

import pytest

from ssd.autoconfig.recipes import COCO, EVALUATION_SHARE, MIN_SAMPLES, SLIM, Length, minutes_for, plan_length, train_settings
from ssd.autoconfig.timing import Timings
from ssd.config.schema import TrainConfig


@pytest.mark.parametrize("iterations", [31, 5000, 200_000, 3_000_000])
def test_the_ema_fits_runs_of_any_length(iterations):
    choices = train_settings(COCO, Length(iterations, 300, 10, 1e5, 32 * iterations), "cuda", 16_000, 5000)
    train = TrainConfig(**{name.removeprefix("train."): choice.value for name, choice in choices.items() if "train." in name})
    assert 0 < 1 - train.ema == pytest.approx(3 / iterations, rel=0.05)


def test_the_run_fills_the_available_time():
    """By hand: 1620 s minus 9 + 3 + 5 s and 10 evaluations of 4 + 3 × 1 s leaves 1533 s, or 3066 steps of 0.5 s."""
    found = plan_length(SLIM, Timings(9, 0.5, 3, 1, 4, 5), 1000, 16, 30)
    assert (found.epochs, found.iterations, found.evaluations) == (49, 3063, 10)
    assert found.seconds == 9 + 3 + 5 + 3063 * 0.5 + 10 * 7
    assert plan_length(SLIM, Timings(9, 0.5, 3, 1, 4, 5), 1000, 16, 120).epochs == 150  # more would gain nothing
    costly = plan_length(SLIM, Timings(9, 0.5, 3, 1, 100, 5), 1000, 16, 30)
    assert costly.evaluations * 103 <= EVALUATION_SHARE * 1620 < (costly.evaluations + 1) * 103 or costly.evaluations == 2
    assert costly.seconds <= 1800


def test_the_suggested_minutes_are_enough():
    slow = Timings(9, 10.0, 0, 2, 60, 5)
    minutes = minutes_for(COCO, slow, 200, 16, MIN_SAMPLES)
    assert plan_length(COCO, slow, 200, 16, minutes).samples >= MIN_SAMPLES
    assert plan_length(COCO, slow, 200, 16, 0.9 * minutes).samples < MIN_SAMPLES
