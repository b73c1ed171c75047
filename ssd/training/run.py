"""A run: what every part of it needs to know."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ssd.config.schema import Config
from ssd.system.device import choose_device, choose_precision, keep_freed_memory
from ssd.system.distributed import World, process_group, world_from_environment
from ssd.system.errors import UsageError
from ssd.system.machine import require_cpp_compiler
from ssd.system.stop import StopRequest

# What may differ between machines: where things lie, and how they are read.
PLACES = {
    "output_dir": True,
    "device": True,
    "data": {"root", "train", "val", "workers", "cache"},
    "model": {"pretrained", "init_from"},
}


@dataclass
class Run:
    """A configuration, and where it is carried out."""

    config: Config
    world: World
    device: torch.device
    dtype: torch.dtype
    folder: Path
    stop: StopRequest

    @classmethod
    def alone(cls, config: Config, stop: StopRequest | None = None) -> Self:
        """A run of one process on the CPU, for those who look at a run's parts and do not train."""
        return cls(config, World(), torch.device("cpu"), torch.float32, Path(config.output_dir), stop or StopRequest())

    @property
    def batch_size(self) -> int:
        """Photos a step, once `settle_batch_size` has put a number in the place of auto."""
        assert self.config.train.batch_size != "auto"
        return self.config.train.batch_size

    def set_train(self, **entries: object) -> None:
        """Gives the configuration other entries in its section `train`."""
        self.config = self.config.model_copy(update={"train": self.config.train.model_copy(update=entries)})

    def say(self, text: str) -> None:
        if self.world.is_main:
            print(text, flush=True)


@contextmanager
def open_run(config: Config, stop: StopRequest) -> Iterator[Run]:
    """The run of this process, connected with the others for the time of the block.

    Raises:
        ConfigError: this machine does not have the device, the precision or a compiler.
    """
    world = world_from_environment()
    device = choose_device(config.device, world.local_rank, world.local_size)
    dtype = choose_precision(config.train.precision, device)
    if config.train.compile and device.type == "cpu":
        require_cpp_compiler("train.compile")
    keep_freed_memory()
    with process_group(world, device):
        yield Run(config, world, device, dtype, Path(config.output_dir), stop)


def require_same_config(run: Run) -> None:
    """Every process has to train alike; each has read its configuration itself.

    Raises:
        UsageError: one has another entry than the main one.
    """
    entries: dict[str, Any] = {}
    for name, value in run.config.model_dump(mode="json", exclude=PLACES).items():
        entries |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    every = run.world.all_gather(entries)
    for rank, theirs in enumerate(every):
        for name, value in theirs.items():
            ours = every[0][name]
            if value != ours:
                raise UsageError(f"{name}: process 0 has {ours}, process {rank} has {value}; give all the same configuration")
