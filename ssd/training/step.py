"""The training step."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ssd.batch import Batch
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.preparation import Preparation, prepare
from ssd.system.device import choose_training_format
from ssd.system.distributed import World
from ssd.training.update import Updater


class Taken(NamedTuple):
    """What a step came to, on the device: to look at it is to wait for it."""

    losses: Tensor  # [2] float32: this process's share of loss_l and loss_c
    grad_norm: Tensor  # [] float32: of the gradient that all processes share, before it is limited; may be infinite in float16


class Step:
    """From a batch to an update of the weights.

    Args:
        model: the network, on its device.
        criterion: the loss.
        preparation: what the weights expect of images.
        updater: of the weights.
        dtype: precision of the activations.
        world: the processes that train together.
        compiled: run network and loss through torch.compile.
    """

    def __init__(
        self,
        model: SSD300,
        criterion: MultiBoxLoss,
        preparation: Preparation,
        updater: Updater,
        dtype: torch.dtype,
        world: World,
        compiled: bool,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.preparation = preparation
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

    def __call__(self, micro_batches: list[Batch], iteration: int) -> Taken:
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
        num_positives = self.world.sum(torch.stack([self.criterion.num_positives(m) for m in matched]).sum())
        losses = torch.zeros(2, device=self.device)
        for number, (batch, targets) in enumerate(zip(micro_batches, matched, strict=True), start=1):
            images = prepare(batch.images, self.preparation, self.device, self.memory_format)
            with self._gradients_shared(number == len(micro_batches)):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loc, conf, _ = self.network(images)
                loss_l, loss_c = self.loss(loc, conf, targets, num_positives)
                # DistributedDataParallel averages over the processes; the divisor already counts all of them.
                self.updater.scaled((loss_l + loss_c) * self.world.size).backward()
            losses += torch.stack([loss_l, loss_c]).detach()
        return Taken(losses, self.updater.apply(losses, iteration))

    def _gradients_shared(self, last: bool) -> AbstractContextManager[None]:
        """Between processes gradients are summed once, in the last accumulation step."""
        return nullcontext() if last or self.ddp is None else self.ddp.no_sync()
