"""Processes that train one model together, started by `torchrun`; a single process is a world of size 1."""

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

# Longer than one process's share of an evaluation, short enough to end a run that has lost a peer.
TIMEOUT = timedelta(minutes=30)
PATIENT_TIMEOUT = timedelta(days=7)
CONNECT_TIMEOUT = timedelta(minutes=5)
# gloo has no error classes: these are its messages for a lost connection.
LOST = re.compile(r"gloo.*(closed by peer|reset by peer|broken pipe|timed out|socket closed|connection refused)", re.I | re.S)

_store: Any = None  # shared by all processes once they are connected
_patient_group: Any = None


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def all_reduce(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes, as a new tensor."""
        total = value.clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def all_gather(self, value: T, patient: bool = False) -> list[T]:
        """Return the values of all processes in order of rank. Not for the training step: it waits for the device.

        `patient` allows hours until the last process arrives.
        """
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=_patient_group if patient else None)
        return values  # pyright: ignore[reportReturnType]

    def require_same(self, value: str, remedy: str) -> None:
        """Raise in all processes if their values, in words, differ. `remedy` says what the user should do then.

        Raises:
            UsageError: they differ; the message names the process and both values.
        """
        first, *others = self.all_gather(value)
        for rank, other in enumerate(others, start=1):
            if other != first:
                raise UsageError(f"process 0 has {first}, process {rank} has {other}; {remedy}")

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these tensors, in place, with those of the main process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def is_lost_peer(error: RuntimeError, world: World) -> bool:
    """Return whether an error raised while the processes were connected means that one of them has ended."""
    return world.size > 1 and (isinstance(error, dist.DistError) or LOST.search(str(error)) is not None)


def world_from_environment() -> World:
    """Return the world described by the environment variables of torchrun; without them, a world of size 1."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Connect the processes within the block: nccl between GPUs, gloo between CPUs. After an error they stay connected.

    Raises:
        UsageError: the connection failed.
    """
    global _store, _patient_group
    if world.size == 1:
        yield
        return
    if device.type == "mps":
        raise UsageError("device: mps supports one process only; set device: cpu, or start the run without torchrun")
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    try:
        socket.getaddrinfo(host, port)  # fails at once; PyTorch would retry an unknown host for minutes
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
        # gloo notices a lost process at once, however long its timeout.
        _patient_group = dist.new_group(backend="gloo", timeout=PATIENT_TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"process {world.rank} of {world.size} cannot connect to the others at {host}:{port} ({reason})"
        ) from None
    try:
        yield
    except Stopped:  # raised in all processes together
        dist.destroy_process_group()
        raise
    # Not after other errors: destroying the group, NCCL would wait for operations that other processes may never join.
    dist.destroy_process_group()


def first_to_say(text: str) -> bool:
    """Return whether this process should print a message, so that processes with the same error print it once."""
    if _store is None:  # not connected
        return world_from_environment().local_rank == 0
    try:
        return _store.add(f"said: {text}", 1) == 1
    except RuntimeError:  # the process that kept the store has ended
        return True
