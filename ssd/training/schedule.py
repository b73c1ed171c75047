"""What happens when in a run."""

from dataclasses import dataclass

from ssd.training.optimizer import lr_factor


@dataclass(frozen=True)
class Schedule:
    """What happens when; in iterations, if nothing else is said."""

    iterations: int
    num_samples: int  # an epoch: photos, and their tiles
    batch_size: int  # of all processes and accumulation steps
    accumulate: int
    lr: float
    warmup: int
    shape: str  # milestones | cosine
    milestones: tuple[int, ...]
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep: int  # numbered checkpoints
    patience: int | None = None  # evaluations without a better one, after which training ends

    def epoch(self, iteration: int) -> int:
        """The epoch, counted from 1, in which an iteration (counted from 1) begins."""
        return max(0, iteration - 1) * self.batch_size // self.num_samples + 1

    def lr_at(self, iteration: int) -> float:
        """The learning rate of an iteration counted from 0."""
        return self.lr * lr_factor(iteration, self.iterations, self.warmup, self.shape, self.milestones)

    def evaluates_at(self, iteration: int) -> bool:
        """Whether an evaluation follows iteration number `iteration`, counted from 1."""
        return iteration > 0 and (iteration % self.eval_every == 0 or iteration == self.iterations)

    def next_evaluation(self, iteration: int) -> int:
        """After which iteration, counted from 1, the next evaluation is made when `iteration` of them are done."""
        return min((iteration // self.eval_every + 1) * self.eval_every, self.iterations)
