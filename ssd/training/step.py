"""The training step: from a batch to an update of the weights."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssd.batch import Batch
from ssd.compress.distill import Teacher, distillation_loss
from ssd.loss import MultiBoxLoss
from ssd.model import SSD
from ssd.preprocessing import Preprocessing, normalize
from ssd.system.device import choose_training_format
from ssd.system.distributed import World
from ssd.training.optimizer import ModelEMA, begin_state, lay_out_state, set_lr
from ssd.training.schedule import Schedule
from ssd.weights.checkpoint import TrainState


class StepOutput(NamedTuple):
    """The result of a step, on the device: reading it synchronises."""

    losses: Tensor  # [2] float32: this process's share of loss_l and loss_c; [3] with a teacher: and of loss_d
    grad_norm: Tensor  # [] float32: of the gradient that all processes share, before clipping; may be infinite in float16


class TrainStep:
    """One training step, the same on every device and in every precision.

    Args:
        model: the network, on its device.
        criterion: the loss.
        preprocessing: of the network's input.
        updater: updates the weights.
        dtype: precision of the activations.
        world: the processes that train together.
        compiled: run network and loss through torch.compile.
        teacher: a network whose predictions are targets too.
    """

    def __init__(
        self,
        model: SSD,
        criterion: MultiBoxLoss,
        preprocessing: Preprocessing,
        updater: "Updater",
        dtype: torch.dtype,
        world: World,
        compiled: bool,
        teacher: Teacher | None = None,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.preprocessing = preprocessing
        self.updater = updater
        self.device = model.dbox_list.device
        self.dtype = dtype
        self.memory_format = choose_training_format(self.device, dtype, model.width, model.architecture.separable)
        self.world = world
        self.ddp = DistributedDataParallel(model, gradient_as_bucket_view=True) if world.size > 1 else None
        network = self.ddp or model
        self.network = torch.compile(network) if compiled else network
        self.loss = torch.compile(criterion.loss) if compiled else criterion.loss
        self.teacher = teacher
        self.num_losses = 3 if teacher else 2
        self.distillation_loss = torch.compile(distillation_loss) if compiled else distillation_loss

    def __call__(self, micro_batches: list[Batch], iteration: int) -> StepOutput:
        """Update the weights once, without waiting for the device.

        Args:
            micro_batches: this process's share of the batch, one for each accumulation step.
            iteration: counted from 0.
        """
        self.model.train()
        # Matching needs no predictions, so the positives of all micro-batches and processes are counted before the first
        # forward pass, and every loss is divided by the final count.
        matched = [self.criterion.match(batch.targets.to(self.device), self.model.dbox_list) for batch in micro_batches]
        num_positives = self.world.all_reduce(torch.stack([self.criterion.num_positives(m) for m in matched]).sum())
        losses = torch.zeros(self.num_losses, device=self.device)
        for number, (batch, targets) in enumerate(zip(micro_batches, matched, strict=True), start=1):
            taught = self.teacher(batch.images) if self.teacher else None  # first: the student's activations take memory
            images = normalize(batch.images, self.preprocessing, self.device, self.memory_format)
            with self._gradient_sync(number == len(micro_batches)):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loc, conf, _ = self.network(images)
                parts = [*self.loss(loc, conf, targets, num_positives)]
                if taught:
                    parts.append(self.distillation_loss(loc, conf, *taught, num_positives))
                terms = torch.stack(parts)
                # DistributedDataParallel averages over the processes, but the divisor already counts all of them.
                self.updater.scale(terms.sum() * self.world.size).backward()
            losses += terms.detach()
        return StepOutput(losses, self.updater.step(losses, iteration))

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager[None]:
        """Sum the gradients of all processes once, in the last micro-batch."""
        return nullcontext() if is_last or self.ddp is None else self.ddp.no_sync()


class Updater:
    """The update of a network's weights: optimiser, gradient scaler and moving average.

    Args:
        model: the network, on its device.
        optimizer: from `make_optimizer`, over the network's parameters.
        schedule: sets the learning rate.
        dtype: precision of the activations; in float16 the loss is scaled.
        ema: the moving average of the weights, if the run keeps one.
        clip_grad_norm: largest norm of the gradient; None for no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        dtype: torch.dtype,
        ema: ModelEMA | None = None,
        clip_grad_norm: float | None = None,
    ) -> None:
        device = next(model.parameters()).device
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.ema = ema
        self.clip_grad_norm = clip_grad_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.non_finite_at = torch.zeros((), device=device)  # the first non-finite iteration, counted from 1; 0: none

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to call `backward` on."""
        return self.scaler.scale(loss)

    def step(self, losses: Tensor, iteration: int) -> Tensor:
        """Update the weights. Once a loss or gradient was not finite, they no longer change.

        Args:
            losses: of the step that produced the gradients.
            iteration: counted from 0.

        Returns:
            The norm `[]` of the whole gradient, on the device, unscaled and before clipping.
        """
        set_lr(self.optimizer, self.schedule.lr_at(iteration))
        scale = self.scaler.scale(torch.ones((), device=self.non_finite_at.device))
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad_norm, norm)
        # In float16 an overflow is normal: the step is skipped, and the scale falls. It is an error only at a scale below 1,
        # where float16 holds every gradient that the loss needs.
        normal = norm.isfinite() | (scale >= 1) if self.scaler.is_enabled() else norm.isfinite()
        non_finite = ~(normal & losses.isfinite().all())
        self.non_finite_at = torch.where((self.non_finite_at == 0) & non_finite, float(iteration + 1), self.non_finite_at)
        found_inf = ~norm.isfinite() | (self.non_finite_at > 0)
        if self.optimizer.defaults["fused"]:  # skips the step on the device where this is 1; the host need not know
            self.optimizer.found_inf = found_inf.float()  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        elif not found_inf:  # waits for the device
            self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model, iteration)
        return norm

    def first_non_finite(self, world: World) -> int | None:
        """Return the first iteration, counted from 0, that was not finite in any process; wait for the device."""
        numbers = [number for number in world.all_gather(int(self.non_finite_at.item())) if number]
        return min(numbers) - 1 if numbers else None

    def state(self) -> dict[str, Any]:
        """Return the updater's entries of a `TrainState`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.ema.state if self.ema else None,
        }

    def restore(self, state: TrainState) -> list[str]:
        """Load a state, except the optimiser's settings, which the configuration decides.

        Returns:
            A line for each part of the state that cannot be used and starts afresh.
        """
        notes = []
        self.model.load_state_dict(state.model)
        groups = self.optimizer.state_dict()["param_groups"]
        if _layout(state.optimizer["param_groups"]) == _layout(groups):
            self.optimizer.load_state_dict({"state": state.optimizer["state"], "param_groups": groups})
        else:
            name = type(self.optimizer).__name__
            notes.append(f"the checkpoint has the state of a different optimiser: {name} starts afresh")
        begin_state(self.optimizer)
        lay_out_state(self.optimizer)
        if state.iteration:  # a checkpoint saved before the next step has the learning rate of the last one
            set_lr(self.optimizer, self.schedule.lr_at(state.iteration - 1))
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        elif self.scaler.is_enabled():
            notes.append(f"the checkpoint was not trained in float16: the loss scale starts at {self.scaler.get_scale():g}")
        if self.ema and state.average is not None:
            for name, value in self.ema.state.items():
                value.copy_(state.average[name])
        elif self.ema:
            notes.append("the checkpoint has no moving average: train.ema starts from its weights")
        return notes


def _layout(groups: list[dict[str, Any]]) -> list[tuple[bool, list[int]]]:
    """Return what two optimisers must share for one to load the other's state."""
    return [("betas" in group, group["params"]) for group in groups]
