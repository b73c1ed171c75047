"""The output folder of a run: found, made ready, never overwritten by surprise."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import filelock

from ssd.config_yaml import dump_yaml
from ssd.system.distributed import World
from ssd.system.errors import UsageError
from ssd.system.files import ASIDE, write_whole
from ssd.training.checkpoints import BEST, LAST, checkpoint_at, find_checkpoint, remove_later
from ssd.weights.checkpoint import CheckpointError, TrainState, save_checkpoint

# What a run writes, and what an overwriting run removes: nothing else in the folder is touched.
OWN_FILES = (
    "run_id",
    "checkpoints/*.pt",
    "metrics.jsonl",
    "tensorboard/events.*",
    "detections.png",
    "damaged.txt",
    "report.html",
    "labels/coco.json",
    "non_finite/*.pt",
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


class Found(NamedTuple):
    """Where a run begins, and what its folder holds besides that is removed, once all is ready."""

    state: TrainState | None  # None: at the start
    clear: bool = False  # another run, or nothing
    goes_back: bool = False  # checkpoints of this run from later iterations


def find_state(folder: Path, resume: str | None, overwrite: bool, say: Callable[[str], None]) -> Found:
    """The state to resume, if any; nothing is written yet.

    Args:
        folder: of the run.
        resume: `auto` (the newest whole checkpoint, or none), the path of a checkpoint or of a run's folder, or None to
            start again.
        overwrite: start over an earlier run.
        say: shows the user a line.

    Raises:
        UsageError: the folder holds another run than the one to resume, and overwriting was not asked for.
        CheckpointError: the checkpoint to resume from cannot be used.
    """
    checkpoints = folder / "checkpoints"
    if resume == "auto":
        found = find_checkpoint(checkpoints)
        if found is None:
            return Found(None, clear=True)
        path, state, skipped = found
        for line in skipped:
            say(f"skipped: {line}")
        say(f"resuming from {path}, iteration {state.iteration}")
        return Found(state)
    if resume is not None:
        path, state = checkpoint_at(Path(resume))
        is_other = not is_of_run(folder, path, state)
        if is_other and not overwrite:
            raise UsageError(
                f"{path}: is of another run than the one in {folder}; choose an empty output_dir for it, or lose that run with "
                "--overwrite"
            )
        say(f"resuming from {path}, iteration {state.iteration}")
        reached = 0 if is_other else _reached(checkpoints)
        if reached > state.iteration:
            say(f"the run goes back from iteration {reached}: its later checkpoints and records are removed")
        return Found(state, is_other, reached > state.iteration)
    if any(checkpoints.glob("*.pt")) and not overwrite:
        raise UsageError(
            f"{folder}: holds a run already; resume with --resume auto, choose another output_dir, or start again with "
            "--overwrite"
        )
    return Found(None, clear=True)


def _reached(checkpoints: Path) -> int:
    """The iteration of the newest whole checkpoint in a folder; 0 where there is none."""
    try:
        newest = find_checkpoint(checkpoints)
    except CheckpointError:
        return 0
    return newest[1].iteration if newest else 0


def is_of_run(folder: Path, path: Path, state: TrainState) -> bool:
    """Whether a run that resumes a checkpoint there mixes with no other one in the folder."""
    checkpoints = folder / "checkpoints"
    if not any(checkpoints.glob("*.pt")) or path.resolve().parent == checkpoints.resolve():
        return True
    return bool(state.run_id) and run_id_of(folder) == state.run_id


def run_id_of(folder: Path) -> str:
    """The identity of the run in a folder; empty where there is none, or one of before runs had one."""
    try:
        return (folder / "run_id").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def make_folder(folder: Path, state: TrainState, found: Found, world: World) -> None:
    """Makes an output folder ready, once all else is: what is to be removed is lost from here on.

    Args:
        folder: made where it is missing.
        state: where the run begins; its configuration is written as config.yaml, its identity as run_id.
        found: what of the folder is removed.
        world: the processes of the run, which all call this; the main one writes.
    """
    world.gather(None)  # every process has looked before one writes
    if not world.is_main:
        return
    if found.clear:
        for path in [path for pattern in OWN_FILES for path in folder.glob(pattern)]:
            path.unlink()
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for path in checkpoints.glob(f".*{ASIDE}"):  # of a run that was killed while it wrote
        path.unlink()
    if found.goes_back:
        remove_later(checkpoints, state.iteration)
        save_checkpoint(checkpoints / LAST, state)
        if state.best_map < 0:  # the best one is of a later iteration
            (checkpoints / BEST).unlink(missing_ok=True)
    for name, text in (("config.yaml", dump_yaml(state.config)), ("run_id", f"{state.run_id}\n")):
        write_whole(folder / name, partial(_write_text, text))


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())


def list_damaged(folder: Path, lines: Sequence[str], world: World) -> None:
    """Writes down what `data.damaged: skip` left out, a line for each fault; no file where there is nothing."""
    if world.is_main and lines:
        write_whole(folder / "damaged.txt", lambda file: file.write(os.fsencode("\n".join([*lines, ""]))))
    elif world.is_main:
        (folder / "damaged.txt").unlink(missing_ok=True)
