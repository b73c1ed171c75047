"""The schedule of a run: its length, its learning rate, and when it evaluates. All numbers are iterations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ssd.config.schema import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """When a run does what."""

    train: TrainConfig  # with a number as batch_size
    eval_every: int
    num_samples: int  # in an epoch: photos, and their tiles

    @property
    def batch_size(self) -> int:
        """The batch of all processes and accumulation steps."""
        assert self.train.batch_size != "auto"
        return self.train.batch_size

    @cached_property
    def iterations(self) -> int:
        """The length of the run."""
        return self.train.iterations or -(-(self.train.epochs or 0) * self.num_samples // self.batch_size)

    @cached_property
    def milestones(self) -> Sequence[int]:
        return default_milestones(self.iterations) if self.train.milestones is None else self.train.milestones

    def lr_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        train = self.train
        return train.lr * lr_factor(iteration, self.iterations, train.warmup, train.schedule, self.milestones)

    def epoch(self, iteration: int) -> int:
        """Return the epoch, counted from 1, in which an iteration (counted from 1) begins."""
        return max(0, iteration - 1) * self.batch_size // self.num_samples + 1

    def evaluates_at(self, iteration: int) -> bool:
        """Return whether an evaluation follows an iteration, counted from 1."""
        return iteration > 0 and (iteration % self.eval_every == 0 or iteration == self.iterations)

    def next_evaluation(self, iteration: int) -> int:
        """Return the iteration, counted from 1, after which the next evaluation runs, once `iteration` are done."""
        return min((iteration // self.eval_every + 1) * self.eval_every, self.iterations)

    def warnings(self) -> list[str]:
        """List the settings that have no effect."""
        warnings = []
        unreached = [milestone for milestone in self.milestones if milestone >= self.iterations]
        if self.train.schedule == "cosine" and self.train.milestones:
            warnings.append("train.milestones have no effect with train.schedule: cosine")
        elif self.train.schedule == "milestones" and unreached:
            warnings.append(f"train.milestones {unreached} lie beyond the last iteration and have no effect")
        if self.train.warmup >= self.iterations:
            warnings.append(f"train.warmup {self.train.warmup} does not end before the last iteration, {self.iterations}")
        return warnings


def lr_factor(iteration: int, iterations: int, warmup: int, schedule: str, milestones: Sequence[int]) -> float:
    """Return the factor on the base learning rate. It depends on the iteration alone, so a resumed run has the same one.

    Args:
        iteration: counted from 0.
        iterations: length of the run.
        warmup: iterations over which the factor rises linearly to 1.
        schedule: `milestones` (×0.1 at each) or `cosine` (to 0 at the end).
        milestones: iterations, rising.
    """
    rise = min(1.0, (iteration + 1) / (warmup + 1))
    if schedule == "cosine":
        progress = max(0, iteration - warmup) / max(1, iterations - warmup)
        return rise * 0.5 * (1 + math.cos(math.pi * progress))
    return rise * 0.1 ** sum(iteration >= milestone for milestone in milestones)


def default_milestones(iterations: int) -> tuple[int, int]:
    """Return two thirds and five sixths of the run: the paper's 80,000 and 100,000 of 120,000."""
    return iterations * 2 // 3, iterations * 5 // 6
