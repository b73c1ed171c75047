"""Small training states, and damage to their files."""

from pathlib import Path

import torch

from ssd.weights.checkpoint import TrainState


def state(iteration: int = 5) -> TrainState:
    """Return a state that differs between iterations."""
    generator = torch.Generator().manual_seed(iteration)
    return TrainState(
        model={"a.weight": torch.randn(3, 4, generator=generator), "a.count": torch.tensor(iteration)},
        classes=["cat", "dog"],
        preprocessing={"mean": (1.0, 2.0, 3.0), "scale": (1.0, 1.0, 1.0), "channel_order": "rgb"},
        config={"seed": 0, "train": {"lr": 1e-3, "milestones": [1, 2]}},
        iteration=iteration,
        optimizer={"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        loss_sums=torch.tensor([1.0, 2.0]),
    )


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damage_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(torch.ones(2).numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")
