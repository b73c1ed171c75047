"""The training loop: steps, records, checkpoints, evaluations, and a clean end whatever happens."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssd.batch import Batch
from ssd.evaluation.evaluate import Evaluation, Interrupted
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preparation import Preparation, prepare
from ssd.system.distributed import World
from ssd.system.stop import Stopped, StopRequest
from ssd.training.optimizer import WeightAverage, begin_state, lr_factor, set_lr
from ssd.training.progress import Clock, Progress
from ssd.training.records import Records
from ssd.weights.checkpoint import TrainState, copy_checkpoint, keep_last, numbered_name, save_checkpoint


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or infinite; the weights were not touched by it.

    Args:
        iteration: counted from 0, in which it happened.
        advice: what else there is to say.
    """

    def __init__(self, iteration: int, advice: str = "the weights were left as before it") -> None:
        super().__init__(f"iteration {iteration + 1}: the loss or its gradient is not finite; {advice}")
        self.iteration = iteration


@dataclass(frozen=True)
class Schedule:
    """What happens when; in iterations, if nothing else is said."""

    iterations: int
    num_photos: int  # an epoch
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
        return max(0, iteration - 1) * self.batch_size // self.num_photos + 1

    def lr_at(self, iteration: int) -> float:
        """The learning rate of an iteration counted from 0."""
        return self.lr * lr_factor(iteration, self.iterations, self.warmup, self.shape, self.milestones)

    def evaluates_at(self, iteration: int) -> bool:
        """Whether an evaluation follows iteration number `iteration`, counted from 1."""
        return iteration > 0 and (iteration % self.eval_every == 0 or iteration == self.iterations)


class Trainer:
    """A run.

    Args:
        model: the network, on its device.
        criterion: the loss.
        optimizer: over the model's parameters.
        preparation: what the weights expect of images.
        schedule: what happens when.
        folder: where checkpoints go.
        device: of the model.
        dtype: precision of the activations.
        world: the processes that train together.
        average: the moving average of the weights, if one is kept.
        clip_grad_norm: largest norm of the gradient, if it is limited.
        compiled: run network and loss through torch.compile.
        identity: the entries of `TrainState` that do not change: classes and configuration.
    """

    def __init__(
        self,
        model: SSD300,
        criterion: MultiBoxLoss,
        optimizer: torch.optim.Optimizer,
        preparation: Preparation,
        schedule: Schedule,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        world: World,
        average: WeightAverage | None,
        clip_grad_norm: float | None,
        compiled: bool,
        identity: dict[str, Any],
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.preparation = preparation
        self.schedule = schedule
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self.world = world
        self.average = average
        self.clip_grad_norm = clip_grad_norm
        self.identity = identity
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        network = model
        if world.size > 1:
            network = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.ddp = network if isinstance(network, DistributedDataParallel) else None
        self.network = torch.compile(network) if compiled else network
        self.loss = torch.compile(criterion.loss) if compiled else criterion.loss
        self.iteration = 0
        self.best_map = -1.0
        self.evaluated_at = -1
        self.not_improved = 0
        # Sums since the last train record: loss_l, loss_c. They stay on the device: to look at them is to wait for it.
        self.window = torch.zeros(2, device=device)
        self.window_start = 0
        self.fault_at = torch.zeros((), device=device)  # number of the first iteration that was not finite, or 0

    def state(self) -> TrainState:
        """All that survives a restart."""
        return TrainState(
            model=self.model.state_dict(),
            preparation=self.preparation.to_plain(),
            iteration=self.iteration,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            average=self.average.state if self.average else None,
            best_map=self.best_map,
            evaluated_at=self.evaluated_at,
            not_improved=self.not_improved,
            window=self.world.sum(self.window.clone()),
            **self.identity,
        )

    def restore(self, state: TrainState) -> None:
        """Goes on from a state, on one process or many, whatever wrote it."""
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        begin_state(self.optimizer)
        self.scaler.load_state_dict(state.scaler)
        if self.average and state.average is not None:
            for name, value in self.average.state.items():
                value.copy_(state.average[name])
        self.iteration, self.best_map, self.evaluated_at = state.iteration, state.best_map, state.evaluated_at
        self.not_improved = state.not_improved
        self.window_start = self.iteration - self.iteration % self.schedule.log_every
        if state.window is not None and self.world.is_main:  # the sums of all processes go on in the main one
            self.window.copy_(state.window)

    def fit(
        self,
        batches: Iterable[Batch],
        evaluate: Callable[[nn.Module], Evaluation],
        records: Records | None,
        progress: Progress,
        stop: StopRequest,
    ) -> Evaluation | None:
        """Trains to the end of the schedule.

        Args:
            batches: the micro-batches from the current iteration on.
            evaluate: evaluates a model; raises Interrupted when the run is asked to stop meanwhile.
            records: where the main process writes; None in the others.
            progress: what the user sees.
            stop: whether the run is asked to stop.

        Returns:
            The last evaluation; None when there was nothing left to do.

        Raises:
            Stopped: on request, after a checkpoint.
            NonFiniteError: a loss or gradient was NaN or infinite.
        """
        evaluation = self._evaluate_if_due(evaluate, records, progress, stop)
        stream = iter(batches)
        clock = Clock()
        while self.iteration < self.schedule.iterations and not self._is_patience_over(progress):
            with clock.waiting():
                micro_batches = self._next_batches(stream)
            self.train_step(micro_batches)
            self.iteration += 1
            progress.step()
            at_log = self.iteration % self.schedule.log_every == 0 or self.iteration == self.schedule.iterations
            if at_log:
                self._log(clock, records, progress)
            if self._asked_to_stop(stop, at_log):
                self.save()
                raise Stopped(stop.signal)
            if self.iteration % self.schedule.checkpoint_every == 0:
                self.save(numbered=True)
            with clock.paused():
                evaluation = self._evaluate_if_due(evaluate, records, progress, stop) or evaluation
        return evaluation

    def _is_patience_over(self, progress: Progress) -> bool:
        """Whether the last evaluations were no better than one before them, as often as the schedule allows."""
        if self.schedule.patience is None or self.not_improved < self.schedule.patience:
            return False
        progress.say(f"eval.patience: no better evaluation in {self.not_improved}; training ends at iteration {self.iteration}")
        return True

    def _next_batches(self, stream: Iterator[Batch]) -> list[Batch]:
        """The micro-batches of one step. If the data fails, what was learned so far is saved first."""
        try:
            return [next(stream) for _ in range(self.schedule.accumulate)]
        except Exception:
            if self.world.size == 1:  # several would have to agree, and the others know nothing of it
                self.save()
            raise

    def train_step(self, micro_batches: list[Batch]) -> None:
        """One update of the weights, without a single wait for the device."""
        self.model.train()
        set_lr(self.optimizer, self.schedule.lr_at(self.iteration))
        # Matching needs no predictions, so the positives of all steps and processes are counted first: the losses have
        # their final divisor from the start.
        dbox_list = self.model.dbox_list
        matched = [self.criterion.match(batch.targets.to(self.device), dbox_list) for batch in micro_batches]
        num_positives = self.world.sum(torch.stack([self.criterion.num_positives(m) for m in matched]).sum())
        losses = torch.zeros(2, device=self.device)
        for step, (batch, targets) in enumerate(zip(micro_batches, matched, strict=True), start=1):
            images = prepare(batch.images, self.preparation, self.device)
            with self._gradients_shared(step == len(micro_batches)):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loc, conf, _ = self.network(images)
                loss_l, loss_c = self.loss(loc, conf, targets, num_positives)
                # DistributedDataParallel averages over the processes; the divisor already counts all of them.
                self.scaler.scale((loss_l + loss_c) * self.world.size).backward()
            losses += torch.stack([loss_l, loss_c]).detach()
        self._update(losses)
        self.window += losses

    def _gradients_shared(self, last: bool):
        """Between processes gradients are summed once, in the last accumulation step."""
        return nullcontext() if last or self.ddp is None else self.ddp.no_sync()

    def _update(self, losses: Tensor) -> None:
        """Moves the weights, unless loss or gradient is not finite: then, and ever after, they stay as they are."""
        scale = self.scaler.scale(torch.ones((), device=self.device))
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad_norm, norm)
        # In float16 a gradient too large for the scale is normal: that step is left out, and the scale falls. Only a gradient
        # that is still infinite at a scale below 1, where float16 holds no less than the loss needs, is a fault.
        normal = norm.isfinite() | (scale >= 1) if self.scaler.is_enabled() else norm.isfinite()
        fault = ~(normal & losses.isfinite().all())
        self.fault_at = torch.where((self.fault_at == 0) & fault, float(self.iteration + 1), self.fault_at)
        # The fused optimisers leave weights and state alone where this is 1: no need for the host to know.
        found_inf = ~norm.isfinite() | (self.fault_at > 0)
        self.optimizer.found_inf = found_inf.float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model, self.iteration)

    def _check_finite(self) -> None:
        """Ends the run if any iteration since the last check was not finite."""
        faults = [fault for fault in self.world.gather(int(self.fault_at.item())) if fault]
        if faults:
            raise NonFiniteError(min(faults) - 1)

    def _log(self, clock: Clock, records: Records | None, progress: Progress) -> None:
        self._check_finite()
        steps = self.iteration - self.window_start
        loss_l, loss_c = (self.world.sum(self.window.clone()) / steps).tolist()
        seconds, waited, timed_steps = clock.lap()
        values = {
            "loss": loss_l + loss_c,
            "loss_l": loss_l,
            "loss_c": loss_c,
            "lr": self.schedule.lr_at(self.iteration - 1),
            "images_per_s": timed_steps * self.schedule.batch_size / seconds,
            "data_wait": waited / seconds,
        }
        epoch = self.schedule.epoch(self.iteration)
        if records:
            records.write("train", epoch, self.iteration, values)
        seconds_left = (self.schedule.iterations - self.iteration) * seconds / timed_steps
        progress.show(epoch, self.iteration, {**values, "seconds_left": seconds_left})
        self.window.zero_()
        self.window_start = self.iteration

    def _asked_to_stop(self, stop: StopRequest, at_log: bool) -> bool:
        """Whether any process was asked to; they have to agree, or one would wait for the others' gradients for ever.

        On GPUs the question is put where the device is waited for anyway.
        """
        if self.world.size == 1:
            return stop()
        if self.device.type == "cuda" and not at_log:
            return False
        numbers = self.world.gather(stop.signal)
        stop.signal = max(numbers)
        return stop()

    def _evaluate_if_due(
        self,
        evaluate: Callable[[nn.Module], Evaluation],
        records: Records | None,
        progress: Progress,
        stop: StopRequest,
    ) -> Evaluation | None:
        if not self.schedule.evaluates_at(self.iteration) or self.evaluated_at == self.iteration:
            return None
        self.save()
        progress.say(f"evaluation after iteration {self.iteration}, epoch {self.schedule.epoch(self.iteration)}")
        try:
            with self.average.applied_to(self.model) if self.average else nullcontext():
                evaluation = evaluate(self.model)
        except Interrupted:
            numbers = self.world.gather(stop.signal)
            raise Stopped(max(numbers)) from None
        self.evaluated_at = self.iteration
        improved = not math.isnan(evaluation.mean_ap) and evaluation.mean_ap > self.best_map
        self.best_map = evaluation.mean_ap if improved else self.best_map
        self.not_improved = 0 if improved else self.not_improved + 1
        if records:
            records.write("eval", self.schedule.epoch(self.iteration), self.iteration, evaluation.record())
        progress.say(evaluation.table())
        progress.say(evaluation.summary)
        self.save(best=improved)
        return evaluation

    def save(self, numbered: bool = False, best: bool = False) -> None:
        """Writes a checkpoint under all the names it is to have; last.pt, which a resume looks at first, comes last.

        So a run that is killed in between finds an older last.pt, does again what led here, and writes them all again.
        """
        self._check_finite()
        state = self.state()
        if not self.world.is_main:
            return
        names = ["best.pt"] if best or not (self.folder / "best.pt").exists() else []
        names += [numbered_name(self.iteration)] if numbered and self.schedule.keep else []
        first, *others = [self.folder / name for name in (*names, "last.pt")]
        save_checkpoint(first, state)
        for path in others:
            copy_checkpoint(first, path)
        keep_last(self.folder, self.schedule.keep)
