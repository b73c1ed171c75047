from itertools import pairwise

import pytest

from ssd.training.schedule import default_milestones, lr_factor
from tests.helpers.runs import schedule_of


def factors(iterations: int, warmup: int, shape: str, milestones: tuple[int, ...] = ()) -> list[float]:
    return [lr_factor(i, iterations, warmup, shape, milestones) for i in range(iterations)]


def test_milestones_and_warmup_by_hand():
    rates = factors(12, 3, "milestones", (6, 9))
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert default_milestones(120_000) == (80_000, 100_000)


def test_cosine_falls_from_one_to_nearly_zero():
    rates = factors(1000, 100, "cosine")
    assert rates[99] < 1
    assert rates[100] == 1
    assert rates[550] == pytest.approx(0.5)
    assert rates[-1] < 1e-5
    assert all(a >= b for a, b in pairwise(rates[100:]))


def test_length_and_milestones_by_default():
    """Three epochs of 10 samples in batches of 4 are 8 iterations; milestones are at two thirds and five sixths."""
    schedule = schedule_of(num_samples=10, epochs=3, iterations=None, lr=0.2, warmup=1, milestones=[5, 6])
    assert (schedule.iterations, schedule.milestones) == (8, (5, 6))
    assert [schedule.lr_at(i) for i in (0, 4, 5, 7)] == pytest.approx([0.1, 0.2, 0.02, 0.002])
    assert schedule_of(num_samples=8, epochs=3, iterations=None, milestones=None).milestones == (4, 5)  # of 6 iterations
    assert schedule_of(iterations=7).iterations == 7


@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_the_next_evaluation_is_the_first_one_that_is_made(every):
    schedule = schedule_of(iterations=20, eval_every=every)
    for iteration in range(20):
        first = next(later for later in range(iteration + 1, 21) if schedule.evaluates_at(later))
        assert schedule.next_evaluation(iteration) == first


@pytest.mark.parametrize(
    ("shape", "named", "warmup", "said"),
    [
        ("milestones", None, 10, []),
        ("milestones", (50, 80), 10, []),
        ("milestones", (50, 100), 10, ["train.milestones [100] lie beyond the last iteration and have no effect"]),
        ("cosine", None, 10, []),
        ("cosine", (50, 80), 10, ["train.milestones have no effect with train.schedule: cosine"]),
        ("cosine", None, 100, ["train.warmup 100 does not end before the last iteration, 100"]),
    ],
)
def test_settings_without_effect_are_reported(shape, named, warmup, said):
    assert schedule_of(warmup=warmup, schedule=shape, milestones=named).warnings() == said
