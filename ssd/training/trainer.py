"""The training loop: steps, records, checkpoints, evaluations, and a clean end whatever happens."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from ssd.batch import Batch
from ssd.evaluation.evaluate import Evaluation
from ssd.system.distributed import World, is_lost_peer
from ssd.system.errors import SAVED, Failure, optional
from ssd.system.stop import Stopped, StopQuestion, StopRequest
from ssd.training.checkpoints import LAST, Checkpoints
from ssd.training.run_log import Clock, RunLog
from ssd.training.schedule import Schedule
from ssd.training.step import StepOutput, TrainStep
from ssd.training.validate import Best
from ssd.weights.checkpoint import TrainState

# So many steps before an evaluation its workers start, and decode the first photos while the network still trains.
AHEAD = 10

# Figures that differ by no more are equal; and so are losses, relative: or patience would wait as long as the last digits fall.
ROUNDING, LOSS_ROUNDING = 1e-9, 1e-4


class NonFiniteError(Failure):
    """A loss or gradient was NaN or infinite; the weights were not touched by it.

    Args:
        iteration: counted from 0, in which it happened.
        advice: what else there is to say.
    """

    def __init__(self, iteration: int, advice: str = "the weights were left as before it") -> None:
        super().__init__(f"iteration {iteration + 1}: the loss or its gradient is not finite; {advice}")
        self.iteration = iteration


class Trainer:
    """The loop over a run's steps.

    Args:
        step: updates the weights.
        schedule: what happens when.
        state: where the run begins; the step has its weights and optimiser already.
        checkpoints: where states are kept.
        log: is told what happens.
        val_loader: of the photos that the network is evaluated on.
        evaluate: evaluates a network on those batches, and raises Stopped when the run is asked to stop meanwhile.
        stop: whether the run is asked to stop.
    """

    def __init__(
        self,
        step: TrainStep,
        schedule: Schedule,
        state: TrainState,
        checkpoints: Checkpoints,
        log: RunLog,
        val_loader: Iterable[Batch],
        evaluate: Callable[[nn.Module, Iterable[Batch]], Evaluation],
        stop: StopRequest,
    ) -> None:
        self.step = step
        self.world = step.world
        self.schedule = schedule
        self.checkpoints = checkpoints
        self.log = log
        self.val_loader = val_loader
        self.val_stream: Iterator[Batch] | None = None  # of the next evaluation, once its workers have started
        self.evaluate = evaluate
        self.stop = stop
        self.is_asked_to_stop = StopQuestion(stop, step.world)
        self.saved_at = state.iteration
        # Plain values alone.
        self.now = replace(state, model={}, optimizer={}, scaler={}, average=None, window=None, grad_norms=None)
        self.best: Best | None = None
        # Sums since the last train record: loss_l, loss_c. They stay on the device: to look at them is to wait for it.
        self.window = torch.zeros(2, device=step.device)
        # Likewise, the same in all processes: the norms of the gradients, without infinite ones, and how many they are.
        self.grad_norms = torch.zeros(2, device=step.device)
        if state.window_start is None:
            self.now.window_start = state.iteration - state.iteration % schedule.log_every
        if state.window is not None and self.world.is_main:  # the sums of all processes continue in the main one
            self.window.copy_(state.window)
        if state.grad_norms is not None:
            self.grad_norms.copy_(state.grad_norms)

    def state(self) -> TrainState:
        """All that survives a restart."""
        window, grad_norms = self.world.all_reduce(self.window.clone()), self.grad_norms.clone()
        return replace(self.now, window=window, grad_norms=grad_norms, **self.step.updater.state())

    def fit(self, batches: Iterable[Batch]) -> Best | None:
        """Trains to the end of the schedule.

        Args:
            batches: the micro-batches from the current iteration on.

        Returns:
            The evaluation of best.pt; None where it was not made since this start.

        Raises:
            Stopped: on request, after a checkpoint.
            NonFiniteError: a loss or gradient was NaN or infinite.
            Exception: of any other kind; what was learned until then is saved, if it can be.
        """
        try:
            return self._fit(batches)
        except NonFiniteError:
            raise
        except (Exception, Stopped) as error:  # Stopped ends a wait for data
            self._save_before_end(error)
            raise

    def _fit(self, batches: Iterable[Batch]) -> Best | None:
        self._evaluate_if_due()
        stream = iter(batches)
        clock = Clock()
        now, schedule = self.now, self.schedule
        while now.iteration < schedule.iterations and not self._is_patience_over():
            if schedule.next_evaluation(now.iteration) - now.iteration <= AHEAD:
                self._begin_evaluation()
            with clock.waiting():
                micro_batches = [next(stream) for _ in range(schedule.accumulate)]
            self._count(self.step(micro_batches, now.iteration))
            now.iteration += 1
            self.log.step()
            if now.iteration % schedule.log_every == 0 or now.iteration == schedule.iterations:
                self._record(clock)
            if self.is_asked_to_stop():
                self.save()
                raise Stopped(self.stop.signal)
            if now.iteration % schedule.checkpoint_every == 0:
                self.save(numbered=True)
            with clock.paused():
                self._evaluate_if_due()
        # As long as no evaluation has a figure, best.pt is the last state.
        is_known = self.best and (now.best_map >= 0 or self.best.iteration == now.iteration)
        if not is_known and now.best_map < 0:
            self.save()
        return self.best if is_known else None

    def _is_patience_over(self) -> bool:
        """Whether the last evaluations were no better than one before them, as often as the schedule allows.

        It begins with the first evaluation that finds something: figures of 0 say nothing of what a network learns.
        """
        not_improved, iteration, patience = self.now.not_improved, self.now.iteration, self.schedule.patience
        if patience is None or not_improved < patience or self.now.best_map <= 0:
            return False
        self.log.say(f"eval.patience: no better evaluation in {not_improved}; training ends at iteration {iteration}")
        return True

    def _count(self, taken: StepOutput) -> None:
        """Adds a step to the sums of the next train record."""
        self.window += taken.losses
        norm, is_finite = taken.grad_norm, taken.grad_norm.isfinite()  # in float16 it is not, in the steps that are left out
        self.grad_norms += torch.stack([torch.where(is_finite, norm, 0), is_finite.float()])

    def _record(self, clock: Clock) -> None:
        """A train record of the steps since the last one."""
        self._check_finite()
        iteration, schedule = self.now.iteration, self.schedule
        steps = iteration - (self.now.window_start or 0)
        loss_l, loss_c = (self.world.all_reduce(self.window.clone()) / steps).tolist()
        norms, num_norms = self.grad_norms.tolist()
        seconds, waited, timed_steps = clock.lap()
        values = {
            "loss": loss_l + loss_c,
            "loss_l": loss_l,
            "loss_c": loss_c,
            "grad_norm": norms / num_norms if num_norms else None,
            "lr": schedule.lr_at(iteration - 1),
            "images_per_s": timed_steps * schedule.batch_size / seconds,
            "data_wait": waited / seconds,
        }
        seconds_left = (schedule.iterations - iteration) * seconds / timed_steps
        self.log.trained(schedule.epoch(iteration), iteration, values, seconds_left)
        self.window.zero_()
        self.grad_norms.zero_()
        self.now.window_start = iteration

    def _check_finite(self) -> None:
        """Ends the run if any iteration since the last check was not finite."""
        iteration = self.step.updater.first_non_finite(self.world)
        if iteration is not None:
            raise NonFiniteError(iteration)

    def _begin_evaluation(self) -> Iterator[Batch]:
        """Starts the workers of the next evaluation, if they have not started."""
        self.val_stream = self.val_stream or iter(self.val_loader)
        return self.val_stream

    def _evaluate_if_due(self) -> None:
        now = self.now
        if not self.schedule.evaluates_at(now.iteration) or now.evaluated_at == now.iteration:
            return
        self.save()
        epoch, average, model = self.schedule.epoch(now.iteration), self.step.updater.average, self.step.model
        self.log.say(f"evaluation after iteration {now.iteration}, epoch {epoch}")
        batches, self.val_stream = self._begin_evaluation(), None
        with average.applied_to(model) if average else nullcontext():
            evaluation = self.evaluate(model, batches)
        self.log.evaluated(epoch, now.iteration, evaluation)  # first: what is not recorded is evaluated again
        now.evaluated_at = now.iteration
        improved = self._is_better(evaluation)
        if improved:
            now.best_map, now.best_loss = evaluation.mean_ap, min(math.inf, evaluation.loss)  # inf in the place of NaN
        now.not_improved = 0 if improved else now.not_improved + 1
        if now.best_map < 0 or improved:
            self.best = Best(now.iteration, evaluation)
        self.save(best=improved)
        self.log.illustrate(evaluation, now.iteration)

    def _is_better(self, evaluation: Evaluation) -> bool:
        """Whether it is the best so far: by its figure, and of equal figures by the lower validation loss; never with NaN."""
        gain = evaluation.mean_ap - self.now.best_map
        return gain > ROUNDING or (abs(gain) <= ROUNDING and evaluation.loss < (1 - LOSS_ROUNDING) * self.now.best_loss)

    def save(self, numbered: bool = False, best: bool = False) -> None:
        """Keeps the state: under a number too, or as the best one too, where that is asked for or no better one is known."""
        self._check_finite()
        state = self.state()
        if self.world.is_main:
            self.checkpoints.write(state, numbered, best or state.best_map < 0)
        self.saved_at = state.iteration

    def _save_before_end(self, error: BaseException) -> None:
        """Saves what was learned before an error ends the run, and leaves a note of it on the error."""
        if not self.world.is_main:
            return
        if self.world.size > 1 and self.now.iteration > self.saved_at:
            if self.step.device.type == "cuda" and isinstance(error, RuntimeError) and is_lost_peer(error, self.world):
                return  # the device waits for the lost one
            # The others know nothing of it. All have the same weights; the sums are this process's, and begin anew.
            self.world = World()
            self.window.zero_()
            self.grad_norms.zero_()
            self.now.window_start = self.now.iteration
        if self.now.iteration > self.saved_at:
            with optional(self.checkpoints.folder / LAST):
                self.save()
        if self.saved_at:
            error.add_note(f"{SAVED} {self.saved_at}")
