"""The output folder of a run: found, made ready, never overwritten by surprise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ssd.checkpoint import TrainState, find_checkpoint, load_checkpoint
from ssd.distributed import World

# What a run writes, and what an overwriting run removes: nothing else in the folder is touched.
OWN_FILES = ("checkpoints/*.pt", "metrics.jsonl", "tensorboard/events.*", "detections.png")


class UsageError(ValueError):
    """The command cannot do what it is asked to; the message says what to do instead."""


def open_folder(
    folder: Path, config: dict[str, Any], resume: str | None, overwrite: bool, world: World, say: Callable[[str], None]
) -> TrainState | None:
    """Makes an output folder ready, and finds the state to go on from, if any.

    Args:
        folder: made where it is missing.
        config: the resolved configuration, written into it as config.yaml.
        resume: `auto` (the newest whole checkpoint, or none), the path of a checkpoint, or None to start anew.
        overwrite: start anew also over an earlier run.
        world: the processes of the run; the main one writes.
        say: shows the user a line.

    Raises:
        UsageError: the folder holds another run, and neither resuming nor overwriting was asked for.
        CheckpointError: the checkpoint to resume from cannot be used.
    """
    checkpoints = folder / "checkpoints"
    state = None
    if resume == "auto":
        found = find_checkpoint(checkpoints)
        if found:
            path, state, passed_over = found
            for line in passed_over:
                say(f"passed over: {line}")
            say(f"resuming from {path}, iteration {state.iteration}")
    elif resume is not None:
        state = load_checkpoint(Path(resume))
        say(f"resuming from {resume}, iteration {state.iteration}")
    elif any(checkpoints.glob("*.pt")) and not overwrite:
        raise UsageError(
            f"{folder}: holds a run already; go on with --resume auto, choose another output_dir, or start anew with "
            "--overwrite"
        )
    world.gather(None)  # every process has looked before one writes
    if world.is_main:
        if state is None:
            for path in [path for pattern in OWN_FILES for path in folder.glob(pattern)]:
                path.unlink()
        checkpoints.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return state


def checkpoint_to_evaluate(folder: Path) -> Path:
    """The best checkpoint of a run, or the last one where none is marked best.

    Raises:
        UsageError: there is none.
    """
    for name in ("best.pt", "last.pt"):
        if (folder / "checkpoints" / name).exists():
            return folder / "checkpoints" / name
    raise UsageError(f"{folder / 'checkpoints'}: no checkpoint to evaluate; train first, or name one with --resume PATH")
