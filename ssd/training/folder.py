"""The output folder of a run: found, made ready, never overwritten by surprise."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from ssd.config_yaml import dump_yaml
from ssd.system.distributed import World
from ssd.system.errors import UsageError
from ssd.system.files import ASIDE, write_whole
from ssd.weights.checkpoint import TrainState, find_checkpoint, load_checkpoint

# What a run writes, and what an overwriting run removes: nothing else in the folder is touched.
OWN_FILES = (
    "checkpoints/*.pt",
    "metrics.jsonl",
    "tensorboard/events.*",
    "detections.png",
    "damaged.txt",
    "report.html",
    "fault/*.pt",
)


@contextmanager
def locked(folder: Path, world: World) -> Iterator[None]:
    """Keeps other runs out of an output folder for the time of the block; the system frees it even after a kill.

    Raises:
        UsageError: another run is in it.
    """
    if not world.is_main:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".owner"  # beside the lock, which not every system lets others read
    try:
        lock = filelock.FileLock(folder / ".lock").acquire(timeout=0)
    except filelock.Timeout:
        who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "unknown"
        raise UsageError(
            f"{folder}: another run (process {who}) is writing there; wait for its end, stop it, or choose another output_dir"
        ) from None
    with lock:
        owner.write_text(f"{os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield


def find_state(folder: Path, resume: str | None, overwrite: bool, say: Callable[[str], None]) -> TrainState | None:
    """The state to go on from, if any; nothing is written yet.

    Args:
        folder: of the run.
        resume: `auto` (the newest whole checkpoint, or none), the path of a checkpoint, or None to start anew.
        overwrite: start anew also over an earlier run.
        say: shows the user a line.

    Raises:
        UsageError: the folder holds another run, and neither resuming nor overwriting was asked for.
        CheckpointError: the checkpoint to resume from cannot be used.
    """
    checkpoints = folder / "checkpoints"
    if resume == "auto":
        found = find_checkpoint(checkpoints)
        if found is None:
            return None
        path, state, passed_over = found
        for line in passed_over:
            say(f"passed over: {line}")
        say(f"resuming from {path}, iteration {state.iteration}")
        return state
    if resume is not None:
        state = load_checkpoint(Path(resume))
        say(f"resuming from {resume}, iteration {state.iteration}")
        return state
    if any(checkpoints.glob("*.pt")) and not overwrite:
        raise UsageError(
            f"{folder}: holds a run already; go on with --resume auto, choose another output_dir, or start anew with "
            "--overwrite"
        )
    return None


def make_folder(folder: Path, config: dict[str, Any], anew: bool, world: World) -> None:
    """Makes an output folder ready, once all else is: what an earlier run left is lost from here on, if the run starts anew.

    Args:
        folder: made where it is missing.
        config: every entry of the configuration, written into it as config.yaml.
        anew: remove what an earlier run left.
        world: the processes of the run, which all call this; the main one writes.
    """
    world.gather(None)  # every process has looked before one writes
    if not world.is_main:
        return
    if anew:
        for path in [path for pattern in OWN_FILES for path in folder.glob(pattern)]:
            path.unlink()
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for path in checkpoints.glob(f".*{ASIDE}"):  # of a run that was killed while it wrote
        path.unlink()
    text = dump_yaml(config)
    write_whole(folder / "config.yaml", lambda file: file.write(text.encode()))


def list_damaged(folder: Path, lines: Sequence[str], world: World) -> None:
    """Writes down what `data.damaged: skip` left out, a line for each fault; no file where there is nothing."""
    if world.is_main and lines:
        write_whole(folder / "damaged.txt", lambda file: file.write(os.fsencode("\n".join([*lines, ""]))))
    elif world.is_main:
        (folder / "damaged.txt").unlink(missing_ok=True)


def checkpoint_to_evaluate(folder: Path) -> Path:
    """The best checkpoint of a run, or the last one where none is marked best.

    Raises:
        UsageError: there is none.
    """
    for name in ("best.pt", "last.pt"):
        if (folder / "checkpoints" / name).exists():
            return folder / "checkpoints" / name
    raise UsageError(f"{folder / 'checkpoints'}: no checkpoint to evaluate; train first, or name one with --resume PATH")
