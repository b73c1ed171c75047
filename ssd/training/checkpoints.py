"""The folder of a run's checkpoints: which are written, kept and found, and what a new start removes.

`ssd.weights.checkpoint` reads and writes one checkpoint; `ssd.training.run` decides where a run begins.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from ssd.config.yaml import dump_yaml
from ssd.system.distributed import World
from ssd.system.errors import UsageError, UserError
from ssd.system.files import ASIDE, write_text
from ssd.weights.checkpoint import CheckpointError, TrainState, copy_checkpoint, digest, load_checkpoint, save_checkpoint

LAST, BEST = "last.pt", "best.pt"

# The files of a run. Overwriting it removes these and leaves everything else in the folder alone.
RUN_FILES = (
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


class Checkpoints:
    """The folder `checkpoints` of a run, which keeps the newest `keep` numbered ones."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def write(self, state: TrainState, numbered: bool, best: bool) -> None:
        """Write a state under all its names; last.pt, which a resume reads first, comes last.

        A run that is killed in between resumes from the older last.pt, repeats its iterations and writes all names again.
        """
        names = [BEST] if best or not (self.folder / BEST).exists() else []
        names += [numbered_name(state.iteration)] if numbered and self.keep else []
        first, *others = [self.folder / name for name in (*names, LAST)]
        save_checkpoint(first, state)
        for path in others:
            copy_checkpoint(first, path)
        remove_old(self.folder, self.keep)


def numbered_name(iteration: int) -> str:
    return f"iteration_{iteration:08d}.pt"


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` numbered checkpoints."""
    for path in _numbered(folder)[keep:]:
        path.unlink(missing_ok=True)


def _numbered(folder: Path) -> list[Path]:
    """List the numbered checkpoints, newest first."""
    return sorted(folder.glob("iteration_*.pt"), reverse=True)


class FoundCheckpoint(NamedTuple):
    """A valid checkpoint."""

    path: Path
    state: TrainState
    skipped: Sequence[str] = ()  # why others were skipped, a line for each


def newest_checkpoint(folder: Path) -> FoundCheckpoint | None:
    """Return the valid checkpoint with the latest iteration; of two, last.pt. None if there are no checkpoints.

    Numbered ones are read only until none can be newer.

    Raises:
        CheckpointError: there are checkpoints, but none is valid.
    """
    found: FoundCheckpoint | None = None
    skipped: list[str] = []
    for path in (folder / LAST, folder / BEST, *_numbered(folder)):
        if not path.exists():
            continue
        if found and path.name.startswith("iteration_") and path.name <= numbered_name(found.state.iteration):
            break
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        if found is None or state.iteration > found.state.iteration:
            found = FoundCheckpoint(path, state, skipped)
    if skipped and not found:
        raise CheckpointError("no checkpoint can be used: " + "; ".join(skipped))
    return found


def checkpoint_at(name: str | Path) -> FoundCheckpoint:
    """Return the checkpoint at a path, or the newest valid one if the path is a run's folder.

    Args:
        name: a path; it may start with `~`, which a shell does not expand in `--resume=~/run`.

    Raises:
        UsageError: it is a folder without checkpoints.
        CheckpointError: no checkpoint there can be used.
    """
    path = Path(os.path.expanduser(name))
    if not path.is_dir():
        return FoundCheckpoint(path, load_checkpoint(path))
    found = newest_checkpoint(path / "checkpoints") or newest_checkpoint(path)
    if found is None:
        raise UsageError(f"{path}: contains no checkpoint; name a checkpoint, or the output_dir of a run that has one")
    return found


def checkpoint_to_evaluate(folder: Path) -> Path:
    """Return the best checkpoint of a run, or the last one if there is no best one.

    Raises:
        UsageError: there is neither.
    """
    for name in (BEST, LAST):
        if (folder / "checkpoints" / name).exists():
            return folder / "checkpoints" / name
    raise UsageError(f"{folder / 'checkpoints'}: no checkpoint to evaluate; train first, or name one with --resume PATH")


class ResumePoint(NamedTuple):
    """Where a run begins, and which files of its folder are removed once everything else is ready."""

    state: TrainState | None  # None: at the start
    clear: bool = False  # remove the run in the folder, if there is one
    goes_back: bool = False  # remove what this run did after `state`

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self.state.iteration if self.state else 0


T = TypeVar("T", FoundCheckpoint, ResumePoint)


def find_same_state(world: World, find: Callable[[], T]) -> T:
    """Call `find` in every process, and check that all find the same state.

    Raises:
        UsageError: a process has a different state than the main one, or all raised a UserError; the message is the main
            process's.
    """
    if world.size == 1:
        return find()
    found, fault = None, ""
    try:
        found = find()
        state = found.state
        run_id = state and (state.run_id or "unknown")
        have = f"iteration {state.iteration} of run {run_id} ({digest(vars(state))[:8]})" if state else "no checkpoint"
    except UserError as error:
        have = fault = str(error)
    faults = [theirs for _, theirs in world.all_gather((have, fault))]
    if all(faults):
        raise UsageError(faults[0])
    world.require_same(
        have, "give all processes the same checkpoint: an output_dir that all machines share, or copies with --resume PATH"
    )
    assert found is not None
    return found


def best_until(iteration: int) -> str:
    """Return the name that keeps the old best checkpoint when best.pt is chosen anew from an iteration on."""
    return f"best_until_{iteration:08d}.pt"


def has_best(folder: Path, start: ResumePoint) -> bool:
    """Return whether best.pt is valid and was written before the run's starting point."""
    best = folder / "checkpoints" / BEST
    if start.state is None or start.clear or not best.exists():
        return False
    try:
        iteration = load_checkpoint(best).iteration
    except CheckpointError:
        return False
    return iteration <= start.iteration or not start.goes_back


def make_folder(world: World, folder: Path, state: TrainState, start: ResumePoint) -> None:
    """Create or clean the output folder. Old files are lost from here on, so everything else must be ready.

    Args:
        world: the processes; all call this, and the main one writes.
        folder: the output folder.
        state: where the run begins; its configuration becomes config.yaml, its identity run_id.
        start: says which files to remove.
    """
    world.all_gather(None)  # every process has read the folder before it changes
    if not world.is_main:
        return
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for path in checkpoints.glob(f".*{ASIDE}"):  # from a run that was killed while it wrote
        path.unlink()
    old = [path for pattern in RUN_FILES for path in folder.glob(pattern)] if start.clear else []
    if start.state and (start.clear or start.goes_back):  # saved before anything is removed, perhaps its own source
        save_checkpoint(checkpoints / LAST, state)
        old = [path for path in old if path != checkpoints / LAST]
    if start.goes_back:
        old += [path for path in _numbered(checkpoints) if path.name > numbered_name(state.iteration)]
    for path in old:
        path.unlink(missing_ok=True)
    if state.best_map < 0 and (checkpoints / BEST).exists():
        if start.goes_back:  # it is from a later iteration
            (checkpoints / BEST).unlink()
        elif start.state and start.state.best_map >= 0:  # still the best one by the old metric
            os.replace(checkpoints / BEST, checkpoints / best_until(state.iteration))
    write_text(folder / "config.yaml", dump_yaml(state.config))
    write_text(folder / "run_id", f"{state.run_id}\n")
