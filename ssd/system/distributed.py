"""Processes that train one model together, as `torchrun` starts them; a single process is the same with a world of 1."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# Longer than any evaluation share that one process may have to wait for, short enough to end a run whose peer is lost.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process's place among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """The one process that writes files and speaks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of every process's `value`, the same on all; it is written into `value` itself."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: T) -> list[T]:
        """Every process's `value`, in order of rank, on all of them; for results, not for the training step."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # pyright: ignore[reportReturnType]

    def share(self, value: T) -> T:
        """The main process's `value`, on all."""
        return self.gather(value)[0]


def is_lost_peer(error: RuntimeError, world: World) -> bool:
    """Whether an error says that another process of the run is gone."""
    return world.size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def world_from_environment() -> World:
    """The place that torchrun's environment variables name; without them a world of 1."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Connects the processes for the time of the block: nccl between GPUs, gloo between CPUs."""
    if world.size == 1:
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()
