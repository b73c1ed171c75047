import pytest

from ssd.training.build import schedule_warnings
from ssd.training.schedule import Schedule


@pytest.mark.parametrize(
    ("shape", "named", "warmup", "said"),
    [
        ("milestones", None, 10, []),
        ("milestones", (50, 80), 10, []),
        ("milestones", (50, 100), 10, ["train.milestones [100] lie beyond the last iteration and have no effect"]),
        ("cosine", None, 10, []),
        ("cosine", (50, 80), 10, ["train.milestones have no effect with train.schedule: cosine"]),
        ("cosine", None, 100, ["train.warmup 100 is not over before the last iteration, 100"]),
    ],
)
def test_what_has_no_effect_is_said(shape, named, warmup, said):
    schedule = Schedule(
        iterations=100, num_photos=8, batch_size=4, accumulate=1, lr=0.1, warmup=warmup, shape=shape,
        milestones=named or (66, 83), log_every=1, eval_every=10, checkpoint_every=10, keep=1,
    )  # fmt: skip
    assert schedule_warnings(schedule, named) == said
