"""The training loop: steps, records, checkpoints and evaluations, and a clean end whatever happens."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch

from ssd.batch import Batch
from ssd.evaluation.evaluate import Evaluation
from ssd.system.distributed import World, is_lost_peer
from ssd.system.errors import SAVED, Failure, optional
from ssd.system.stop import Stopped, StopQuestion
from ssd.training.build import RunParts
from ssd.training.checkpoints import LAST, Checkpoints
from ssd.training.datasets import val_loader
from ssd.training.run import Run
from ssd.training.run_log import RunLog
from ssd.training.step import StepOutput
from ssd.training.validate import Best, compare_with_best, evaluate_photos, is_patience_over
from ssd.weights.checkpoint import TrainState

# Iterations before an evaluation in which its workers start and decode the first photos.
AHEAD = 10


class NonFiniteError(Failure):
    """A loss or gradient was NaN or infinite; the weights were not updated with it.

    Args:
        iteration: where it happened, counted from 0.
        advice: for the user.
    """

    def __init__(self, iteration: int, advice: str = "the weights are unchanged") -> None:
        super().__init__(f"iteration {iteration + 1}: the loss or its gradient is not finite; {advice}")
        self.iteration = iteration


class Clock:
    """Seconds of training, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waited = 0.0
        self.steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for the data of one step."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block out of the time."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    def lap(self) -> tuple[float, float, int]:
        """Return the seconds, seconds waited and steps since the last lap."""
        now = time.perf_counter()
        seconds, waited, steps = now - self.start, self.waited, self.steps
        self.start, self.waited, self.steps = now, 0.0, 0
        return seconds, waited, steps


class Trainer:
    """The loop over a run's iterations.

    Args:
        run: the run.
        parts: what it trains with; the step already has the weights and the optimiser of `state`.
        state: where the run begins.
        checkpoints: writes checkpoints.
        log: records metrics and prints messages.
    """

    def __init__(self, run: Run, parts: RunParts, state: TrainState, checkpoints: Checkpoints, log: RunLog) -> None:
        self.run = run
        self.world = run.world
        self.schedule = parts.schedule
        self.step = parts.step
        self.val_set = parts.val_set
        self.val_batches = val_loader(run, parts.val_set)
        self.val_stream: Iterator[Batch] | None = None  # of the next evaluation, once its workers have started
        self.checkpoints = checkpoints
        self.log = log
        self.is_asked_to_stop = StopQuestion(run.stop, run.world)
        self.saved_at = state.iteration
        # Plain values only.
        self.now = replace(state, model={}, optimizer={}, scaler={}, average=None, loss_sums=None, grad_norms=None)
        self.best: Best | None = None
        # Sums since the last train record, on the device because reading them synchronises: the losses of this process; norms
        # of the finite gradients and their number, the same in all processes.
        self.loss_sums = torch.zeros(parts.step.num_losses, device=run.device)
        self.grad_norms = torch.zeros(2, device=run.device)
        if state.recorded_at is None:
            self.now.recorded_at = state.iteration - state.iteration % run.config.log_every
        if state.loss_sums is not None and len(state.loss_sums) != len(self.loss_sums):  # the teacher is new, or gone
            self.now.recorded_at = state.iteration
        else:
            if state.loss_sums is not None and self.world.is_main:  # of all processes
                self.loss_sums.copy_(state.loss_sums)
            if state.grad_norms is not None:
                self.grad_norms.copy_(state.grad_norms)

    def fit(self, batches: Iterable[Batch]) -> Best | None:
        """Train to the end of the schedule.

        Args:
            batches: the micro-batches from the current iteration on.

        Returns:
            The evaluation of best.pt; None if it was made before this start.

        Raises:
            Stopped: on request, after a checkpoint.
            NonFiniteError: a loss or gradient was NaN or infinite.
            Exception: any other error; progress up to it is saved if possible.
        """
        try:
            return self._fit(batches)
        except NonFiniteError:
            raise
        except (Exception, Stopped) as error:  # Stopped: while waiting for data
            self._save_before_end(error)
            raise

    def _fit(self, batches: Iterable[Batch]) -> Best | None:
        config, now, schedule = self.run.config, self.now, self.schedule
        self._evaluate_if_due()
        stream = iter(batches)
        clock = Clock()
        while now.iteration < schedule.iterations:
            if is_patience_over(now, config.eval.patience):
                worse = f"no improvement in {now.not_improved} evaluations"
                self.log.say(f"eval.patience: {worse}; training ends at iteration {now.iteration}")
                break
            if schedule.next_evaluation(now.iteration) - now.iteration <= AHEAD:
                self._begin_evaluation()
            with clock.waiting():
                micro_batches = [next(stream) for _ in range(config.train.accumulate)]
            self.run.threads.follow()
            if warning := self.run.threads.warning():
                self.log.say(warning)
            self._add_to_sums(self.step(micro_batches, now.iteration))
            now.iteration += 1
            self.log.step()
            if now.iteration % config.log_every == 0 or now.iteration == schedule.iterations:
                self._record(clock)
            if self.is_asked_to_stop():
                self.save()
                raise Stopped(self.run.stop.signal)
            if now.iteration % config.checkpoint.every == 0:
                self.save(numbered=True)
            with clock.paused():
                self._evaluate_if_due()
        # Until an evaluation has a mAP, best.pt is the last state.
        is_known = self.best and (now.best_map >= 0 or self.best.iteration == now.iteration)
        if not is_known and now.best_map < 0:
            self.save()
        return self.best if is_known else None

    def _add_to_sums(self, output: StepOutput) -> None:
        """Add a step to the sums of the next train record."""
        self.loss_sums += output.losses
        norm, is_finite = output.grad_norm, output.grad_norm.isfinite()  # not finite in steps that float16 skips
        self.grad_norms += torch.stack([torch.where(is_finite, norm, 0), is_finite.float()])

    def _record(self, clock: Clock) -> None:
        """Write a train record: the means since the last one."""
        self._check_finite()
        iteration, schedule = self.now.iteration, self.schedule
        steps = iteration - (self.now.recorded_at or 0)
        loss_l, loss_c, *loss_d = (self.world.all_reduce(self.loss_sums) / steps).tolist()
        norms, num_norms = self.grad_norms.tolist()
        seconds, waited, timed_steps = clock.lap()
        values = {
            "loss": loss_l + loss_c,
            "loss_l": loss_l,
            "loss_c": loss_c,
            **({"loss_d": loss_d[0]} if loss_d else {}),
            "grad_norm": norms / num_norms if num_norms else None,
            "lr": schedule.lr_at(iteration - 1),
            "images_per_s": timed_steps * schedule.batch_size / seconds,
            "data_wait": waited / seconds,
        }
        seconds_left = (schedule.iterations - iteration) * seconds / timed_steps
        self.log.trained(schedule.epoch(iteration), iteration, values, seconds_left)
        self._clear_sums()

    def _clear_sums(self) -> None:
        self.loss_sums.zero_()
        self.grad_norms.zero_()
        self.now.recorded_at = self.now.iteration

    def _check_finite(self) -> None:
        """End the run if an iteration since the last check was not finite."""
        iteration = self.step.updater.first_non_finite(self.world)
        if iteration is not None:
            raise NonFiniteError(iteration)

    def _evaluate_if_due(self) -> None:
        """Evaluate if it is time: record the result, compare it with the best one, save a checkpoint, and draw pictures."""
        now = self.now
        if not self.schedule.evaluates_at(now.iteration) or now.evaluated_at == now.iteration:
            return
        self.save()
        evaluation = self._evaluate()
        # First, so that a resumed run evaluates again if this fails.
        self.log.evaluated(self.schedule.epoch(now.iteration), now.iteration, evaluation)
        is_better = compare_with_best(now, evaluation)
        if is_better or now.best_map < 0:
            self.best = Best(now.iteration, evaluation)
        self.save(best=is_better)
        self.log.illustrate(evaluation, now.iteration)

    def _begin_evaluation(self) -> Iterator[Batch]:
        """Start the workers of the next evaluation, unless they have started."""
        self.val_stream = self.val_stream or iter(self.val_batches)
        return self.val_stream

    def _evaluate(self) -> Evaluation:
        """Evaluate the averaged weights, or the network's own if the run keeps no average."""
        iteration, ema, model = self.now.iteration, self.step.updater.ema, self.step.model
        self.log.say(f"evaluation after iteration {iteration}, epoch {self.schedule.epoch(iteration)}")
        batches, self.val_stream = self._begin_evaluation(), None
        with ema.applied_to(model) if ema else nullcontext():
            return evaluate_photos(self.run, self.val_set, self.step.preprocessing, model, batches)

    def state(self) -> TrainState:
        """Return everything that survives a restart."""
        loss_sums, grad_norms = self.world.all_reduce(self.loss_sums), self.grad_norms.clone()
        return replace(self.now, loss_sums=loss_sums, grad_norms=grad_norms, **self.step.updater.state())

    def save(self, numbered: bool = False, best: bool = False) -> None:
        """Save the state as last.pt; under a number too, or as best.pt too if asked for or if no evaluation has a mAP yet."""
        self._check_finite()
        state = self.state()
        if self.world.is_main:
            self.checkpoints.write(state, numbered, best or state.best_map < 0)
        self.saved_at = state.iteration

    def _save_before_end(self, error: BaseException) -> None:
        """Save before an error ends the run, and add a note about it to the error."""
        if not self.world.is_main:
            return
        if self.world.size > 1 and self.now.iteration > self.saved_at:
            if self.run.device.type == "cuda" and isinstance(error, RuntimeError) and is_lost_peer(error, self.world):
                return  # the device waits for the lost process
            # The others do not know of the error. They have the same weights; the sums here are incomplete, and start over.
            self.world = World()
            self._clear_sums()
        if self.now.iteration > self.saved_at:
            with optional(self.checkpoints.folder / LAST):
                self.save()
        if self.saved_at:
            error.add_note(f"{SAVED} {self.saved_at}")
