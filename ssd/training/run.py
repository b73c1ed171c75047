"""A run: its configuration, device, processes and output folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import filelock
import torch

from ssd.config.schema import Config
from ssd.system.device import choose_device, choose_precision, keep_freed_memory
from ssd.system.distributed import World, process_group, world_from_environment
from ssd.system.errors import UsageError
from ssd.system.machine import require_cpp_compiler
from ssd.system.stop import StopRequest

# Entries that may differ between machines: where files are, and how they are read.
PER_MACHINE = {
    "output_dir": True,
    "device": True,
    "data": {"root", "train", "val", "workers", "cache"},
    "model": {"pretrained", "init_from"},
}


@dataclass
class Run:
    """A configuration, and the process that carries it out."""

    config: Config
    world: World
    device: torch.device
    dtype: torch.dtype
    folder: Path
    stop: StopRequest

    @classmethod
    def alone(cls, config: Config, stop: StopRequest | None = None) -> Self:
        """Return a run in one process on the CPU, for tools that inspect a run without training."""
        return cls(config, World(), torch.device("cpu"), torch.float32, Path(config.output_dir), stop or StopRequest())

    @property
    def batch_size(self) -> int:
        """Photos per step; `auto` must have been settled by `settle_batch_size`."""
        assert self.config.train.batch_size != "auto"
        return self.config.train.batch_size

    def set_train(self, **entries: object) -> None:
        """Change entries of the configuration's section `train`."""
        self.config = self.config.model_copy(update={"train": self.config.train.model_copy(update=entries)})

    def say(self, text: str) -> None:
        """Print a line, in the main process only."""
        if self.world.is_main:
            print(text, flush=True)


@contextmanager
def open_run(config: Config, stop: StopRequest) -> Iterator[Run]:
    """Open the run of this process, connected to the other processes within the block.

    Raises:
        ConfigError: this machine lacks the device, the precision or a compiler.
    """
    world = world_from_environment()
    device = choose_device(config.device, world.local_rank, world.local_size)
    dtype = choose_precision(config.train.precision, device)
    if config.train.compile and device.type == "cpu":
        require_cpp_compiler("train.compile")
    keep_freed_memory()
    with process_group(world, device):
        yield Run(config, world, device, dtype, Path(config.output_dir), stop)


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Lock the output folder against other runs within the block; the system releases the lock even after a kill.

    Raises:
        UsageError: another run holds it.
    """
    if not run.world.is_main:
        yield
        return
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".owner"  # a separate file: some systems do not let others read a locked one
    try:
        lock = filelock.FileLock(folder / ".lock").acquire(timeout=0)
    except filelock.Timeout:
        who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "unknown"
        raise UsageError(
            f"{folder}: another run (process {who}) is writing here; wait for it, stop it, or choose another output_dir"
        ) from None
    with lock:
        owner.write_text(f"{os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield


def require_same_config(run: Run) -> None:
    """Check that every process has read the same configuration.

    Raises:
        UsageError: an entry differs from the main process's.
    """
    entries: dict[str, Any] = {}
    for name, value in run.config.model_dump(mode="json", exclude=PER_MACHINE).items():
        entries |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    every = run.world.all_gather(entries)
    for rank, theirs in enumerate(every):
        for name, value in theirs.items():
            ours = every[0][name]
            if value != ours:
                raise UsageError(
                    f"{name}: process 0 has {ours}, process {rank} has {value}; give all processes the same configuration"
                )
