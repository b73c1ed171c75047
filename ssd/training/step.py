"""The training step."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssd.batch import Batch
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preprocessing import Preprocessing, normalize
from ssd.system.device import choose_training_format
from ssd.system.distributed import World
from ssd.training.optimizer import ModelEMA, begin_state, lay_out_state, set_lr
from ssd.training.schedule import Schedule
from ssd.weights.checkpoint import TrainState


class Updater:
    """Optimiser, gradient scaler and moving average of a network.

    Args:
        model: the network, on its device.
        optimizer: over its parameters, as of `make_optimizer`.
        schedule: of the learning rate.
        dtype: precision of the activations; in float16 the loss is scaled.
        average: the moving average of the weights, if one is kept.
        clip_grad_norm: largest norm of the gradient, if it is limited.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        dtype: torch.dtype,
        average: ModelEMA | None = None,
        clip_grad_norm: float | None = None,
    ) -> None:
        device = next(model.parameters()).device
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.average = average
        self.clip_grad_norm = clip_grad_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.non_finite_at = torch.zeros((), device=device)  # number of the first iteration that was not finite, or 0

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to take the gradient of."""
        return self.scaler.scale(loss)

    def apply(self, losses: Tensor, iteration: int) -> Tensor:
        """Moves the weights, unless loss or gradient is not finite: then, and ever after, they stay as they are.

        Args:
            losses: of the step that the gradients come from.
            iteration: counted from 0.

        Returns:
            The norm of the gradient of all weights together `[]`, on the device: without the scale of float16, and before
            it is limited.
        """
        set_lr(self.optimizer, self.schedule.lr_at(iteration))
        scale = self.scaler.scale(torch.ones((), device=self.non_finite_at.device))
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad_norm, norm)
        # In float16 a gradient too large for the scale is normal: that step is left out, and the scale falls. Only a gradient
        # that is still infinite at a scale below 1, where float16 holds no less than the loss needs, is not.
        normal = norm.isfinite() | (scale >= 1) if self.scaler.is_enabled() else norm.isfinite()
        non_finite = ~(normal & losses.isfinite().all())
        self.non_finite_at = torch.where((self.non_finite_at == 0) & non_finite, float(iteration + 1), self.non_finite_at)
        # The fused optimisers leave weights and state alone where this is 1: no need for the host to know.
        found_inf = ~norm.isfinite() | (self.non_finite_at > 0)
        if self.optimizer.defaults["fused"]:
            self.optimizer.found_inf = found_inf.float()  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        elif not found_inf:  # others know nothing of it: it is waited for
            self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model, iteration)
        return norm

    def first_non_finite(self, world: World) -> int | None:
        """The first iteration, counted from 0, that was not finite in any process; waits for the device."""
        numbers = [number for number in world.all_gather(int(self.non_finite_at.item())) if number]
        return min(numbers) - 1 if numbers else None

    def state(self) -> dict[str, Any]:
        """Its entries of a `TrainState`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state if self.average else None,
        }

    def restore(self, state: TrainState) -> list[str]:
        """Takes up a state where it was left; the optimiser's own settings stay as they are now.

        Returns:
            A line for each part of the state that cannot be used and starts from nothing.
        """
        notes = []
        self.model.load_state_dict(state.model)
        groups = self.optimizer.state_dict()["param_groups"]
        if _shape(state.optimizer["param_groups"]) == _shape(groups):
            self.optimizer.load_state_dict({"state": state.optimizer["state"], "param_groups": groups})
        else:
            name = type(self.optimizer).__name__
            notes.append(f"the checkpoint is of another optimiser: that of {name} starts from nothing")
        begin_state(self.optimizer)
        lay_out_state(self.optimizer)
        if state.iteration:  # what is saved before the next step is as the last one left it
            set_lr(self.optimizer, self.schedule.lr_at(state.iteration - 1))
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        elif self.scaler.is_enabled():
            notes.append(f"the checkpoint is not of float16: the loss scale starts at {self.scaler.get_scale():g}")
        if self.average and state.average is not None:
            for name, value in self.average.state.items():
                value.copy_(state.average[name])
        elif self.average:
            notes.append("the checkpoint has no moving average: train.ema begins with its weights")
        return notes


class StepOutput(NamedTuple):
    """What a step came to, on the device: to look at it is to wait for it."""

    losses: Tensor  # [2] float32: this process's share of loss_l and loss_c
    grad_norm: Tensor  # [] float32: of the gradient that all processes share, before it is limited; may be infinite in float16


class TrainStep:
    """From a batch to an update of the weights.

    Args:
        model: the network, on its device.
        criterion: the loss.
        preprocessing: what the weights expect of images.
        updater: of the weights.
        dtype: precision of the activations.
        world: the processes that train together.
        compiled: run network and loss through torch.compile.
    """

    def __init__(
        self,
        model: SSD300,
        criterion: MultiBoxLoss,
        preprocessing: Preprocessing,
        updater: Updater,
        dtype: torch.dtype,
        world: World,
        compiled: bool,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.preprocessing = preprocessing
        self.updater = updater
        self.device = model.dbox_list.device
        self.dtype = dtype
        self.memory_format = choose_training_format(self.device, dtype, model.width)
        self.world = world
        network = model
        if world.size > 1:
            network = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.ddp = network if isinstance(network, DistributedDataParallel) else None
        self.network = torch.compile(network) if compiled else network
        self.loss = torch.compile(criterion.loss) if compiled else criterion.loss

    def __call__(self, micro_batches: list[Batch], iteration: int) -> StepOutput:
        """One update of the weights, without a single wait for the device.

        Args:
            micro_batches: this process's share of the batch, one for each accumulation step.
            iteration: counted from 0.
        """
        self.model.train()
        # Matching needs no predictions, so the positives of all steps and processes are counted first: the losses have
        # their final divisor from the start.
        dbox_list = self.model.dbox_list
        matched = [self.criterion.match(batch.targets.to(self.device), dbox_list) for batch in micro_batches]
        num_positives = self.world.all_reduce(torch.stack([self.criterion.num_positives(m) for m in matched]).sum())
        losses = torch.zeros(2, device=self.device)
        for number, (batch, targets) in enumerate(zip(micro_batches, matched, strict=True), start=1):
            images = normalize(batch.images, self.preprocessing, self.device, self.memory_format)
            with self._gradients_shared(number == len(micro_batches)):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loc, conf, _ = self.network(images)
                loss_l, loss_c = self.loss(loc, conf, targets, num_positives)
                # DistributedDataParallel averages over the processes; the divisor already counts all of them.
                self.updater.scaled((loss_l + loss_c) * self.world.size).backward()
            losses += torch.stack([loss_l, loss_c]).detach()
        return StepOutput(losses, self.updater.apply(losses, iteration))

    def _gradients_shared(self, last: bool) -> AbstractContextManager[None]:
        """Between processes gradients are summed once, in the last accumulation step."""
        return nullcontext() if last or self.ddp is None else self.ddp.no_sync()


def _shape(groups: list[dict[str, Any]]) -> list[tuple[bool, list[int]]]:
    """What two optimisers must have in common for one to take up the other's state."""
    return [("betas" in group, group["params"]) for group in groups]
