"""Processes that train one model together, as `torchrun` starts them; a single process is the same with a world of 1."""

import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ssd.system.errors import UsageError
from ssd.system.stop import Stopped

T = TypeVar("T")

# Longer than any evaluation share that one process may have to wait for, short enough to end a run whose peer is lost.
TIMEOUT = timedelta(minutes=30)
PATIENT_TIMEOUT = timedelta(days=7)
CONNECT_TIMEOUT = timedelta(minutes=5)
# What gloo, which knows no class of errors, says of a connection that is gone.
LOST = re.compile(r"gloo.*(closed by peer|reset by peer|broken pipe|timed out|socket closed|connection refused)", re.I | re.S)

_store: Any = None  # that all processes reach, from the time on when they are connected
_patient_group: Any = None


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

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum of every process's `value`, the same on all; it is written into `value` itself."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def all_gather(self, value: T, patient: bool = False) -> list[T]:
        """Every process's `value`, in order of rank, on all of them; for results, not for the training step.

        Args:
            value: of this process.
            patient: one of them may take hours to come here.
        """
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=_patient_group if patient else None)
        return values  # pyright: ignore[reportReturnType]

    def require_same(self, have: str, remedy: str) -> None:
        """Ends all processes alike where one has something else than the main one.

        Args:
            have: what this process has, in words.
            remedy: what to do where they differ.

        Raises:
            UsageError: they differ; it says which process has what.
        """
        every = self.all_gather(have)
        for rank, theirs in enumerate(every):
            if theirs != every[0]:
                raise UsageError(f"process 0 has {every[0]}, process {rank} has {theirs}; {remedy}")

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the main one's values of these tensors, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def is_lost_peer(error: RuntimeError, world: World) -> bool:
    """Whether an error, raised after the processes were connected, says that one of them is gone."""
    return world.size > 1 and (isinstance(error, dist.DistError) or LOST.search(str(error)) is not None)


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
    """Connects the processes for the time of the block: nccl between GPUs, gloo between CPUs. An error leaves them connected.

    Raises:
        UsageError: they cannot be connected.
    """
    global _store, _patient_group
    if world.size == 1:
        yield
        return
    if device.type == "mps":
        raise UsageError("device: mps works for one process; set device: cpu, or start the run without torchrun")
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    try:
        socket.getaddrinfo(host, port)  # PyTorch would try an unknown host again and again
        _store, rank, size = next(rendezvous("env://", timeout=CONNECT_TIMEOUT))
        is_cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=_store,
            rank=rank,
            world_size=size,
            timeout=TIMEOUT,
            device_id=device if is_cuda else None,
        )
        # Of gloo: it notices at once when a process is gone, however long the others may wait.
        _patient_group = dist.new_group(backend="gloo", timeout=PATIENT_TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"process {world.rank} of {world.size} cannot be connected with the others at {host}:{port} ({reason})"
        ) from None
    try:
        yield
    except Stopped:  # all of them are, by agreement
        dist.destroy_process_group()
        raise
    # After any other error the group stays: NCCL would wait for the others' part in what is under way, which may never come.
    dist.destroy_process_group()


def first_to_say(text: str) -> bool:
    """Whether this process is the one to print what went wrong: what several have met with is said once."""
    if _store is None:  # not connected yet, or alone
        return world_from_environment().local_rank == 0
    try:
        return _store.add(f"said: {text}", 1) == 1
    except RuntimeError:  # the store is gone, and the process that kept it
        return True
