"""The checkpoints of a run: the last one, the best one, and some numbered ones; how they are kept, and found again."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import filelock

from ssd.config.yaml import dump_yaml
from ssd.system.distributed import World
from ssd.system.errors import UsageError, UserError
from ssd.system.files import ASIDE, write_whole
from ssd.training.run_log import read_records
from ssd.weights.checkpoint import CheckpointError, TrainState, copy_checkpoint, digest, load_checkpoint, save_checkpoint

LAST, BEST = "last.pt", "best.pt"


class Checkpoints:
    """The folder of a run's checkpoints.

    Args:
        folder: where they are.
        keep: how many numbered ones stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def write(self, state: TrainState, numbered: bool, best: bool) -> None:
        """Writes a state under all its names; last.pt, which a resume reads first, is written last.

        So a run that is killed in between finds an older last.pt, repeats the iterations since, and writes all of them again.
        """
        names = [BEST] if best or not (self.folder / BEST).exists() else []
        names += [numbered_name(state.iteration)] if numbered and self.keep else []
        first, *others = [self.folder / name for name in (*names, LAST)]
        save_checkpoint(first, state)
        for path in others:
            copy_checkpoint(first, path)
        keep_last(self.folder, self.keep)


def numbered_name(iteration: int) -> str:
    return f"iteration_{iteration:08d}.pt"


def keep_last(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` numbered checkpoints."""
    for path in _numbered(folder)[keep:]:
        path.unlink(missing_ok=True)


def remove_later(folder: Path, iteration: int) -> None:
    """Removes numbered checkpoints of later iterations than one."""
    for path in _numbered(folder):
        if path.name > numbered_name(iteration):
            path.unlink()


def _numbered(folder: Path) -> list[Path]:
    """The numbered checkpoints, the newest first."""
    return sorted(folder.glob("iteration_*.pt"), reverse=True)


def find_checkpoint(folder: Path) -> tuple[Path, TrainState, list[str]] | None:
    """The whole checkpoint of a run from its latest iteration, and a line for each one that had to be skipped.

    Where two are of the same iteration last.pt counts, which is written last. Numbered ones are read as far as they are needed.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
    """
    found: tuple[Path, TrainState] | None = None
    skipped = []
    for path in (folder / LAST, folder / BEST, *_numbered(folder)):
        if not path.exists():
            continue
        if found and path.name.startswith("iteration_") and path.name <= numbered_name(found[1].iteration):
            break
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        if found is None or state.iteration > found[1].iteration:
            found = path, state
    if found:
        return *found, skipped
    if skipped:
        raise CheckpointError("no checkpoint can be used: " + "; ".join(skipped))
    return None


def checkpoint_at(name: str | Path) -> tuple[Path, TrainState, list[str]]:
    """The checkpoint that a name means: itself, or the newest whole one of a run's folder; as of `find_checkpoint`.

    Args:
        name: a path; a shell leaves the `~` of `--resume=~/run` as it is.

    Raises:
        UsageError: it is a folder without any.
        CheckpointError: it cannot be used, or none of those in it is whole.
    """
    path = Path(os.path.expanduser(name))
    if not path.is_dir():
        return path, load_checkpoint(path), []
    for folder in (path / "checkpoints", path):
        found = find_checkpoint(folder)
        if found:
            return found
    raise UsageError(f"{path}: holds no checkpoint; name a checkpoint, or the output_dir of a run that has some")


def checkpoint_to_evaluate(folder: Path) -> Path:
    """The best checkpoint of a run, or the last one where none is marked best.

    Raises:
        UsageError: there is none.
    """
    for name in (BEST, LAST):
        if (folder / "checkpoints" / name).exists():
            return folder / "checkpoints" / name
    raise UsageError(f"{folder / 'checkpoints'}: no checkpoint to evaluate; train first, or name one with --resume PATH")


T = TypeVar("T")


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


class ResumePoint(NamedTuple):
    """Where a run begins, and what its folder holds besides that is removed, once all is ready."""

    state: TrainState | None  # None: at the start
    clear: bool = False  # another run, or nothing
    goes_back: bool = False  # checkpoints of this run from later iterations


def find_state(folder: Path, resume: str | None, overwrite: bool, say: Callable[[str], None]) -> ResumePoint:
    """The state to resume, if any; nothing is written yet.

    Args:
        folder: of the run.
        resume: `auto` (the newest whole checkpoint, or none), the path of a checkpoint or of a run's folder, or None to
            start again.
        overwrite: what the folder holds may be lost: an earlier run, or what this one did after the checkpoint.
        say: shows the user a line.

    Raises:
        UsageError: something in the folder would be lost, and overwriting was not asked for.
        CheckpointError: the checkpoint to resume from cannot be used.
    """
    found = None
    if resume == "auto":
        found = find_checkpoint(folder / "checkpoints")
    elif resume is not None:
        found = checkpoint_at(resume)
    may_clear = overwrite or not _holds_run(folder)
    if found is None:
        if not may_clear:
            what = "what a run has left, but no checkpoint;" if resume else "a run already; resume with --resume auto,"
            raise UsageError(f"{folder}: holds {what} choose another output_dir, or start again with --overwrite")
        return ResumePoint(None, clear=True)
    path, state, skipped = found
    for line in skipped:
        say(f"skipped: {line}")
    if not state.optimizer:
        raise CheckpointError(f"{path}: holds weights alone, nothing to resume; start from them with model.init_from={path}")
    is_other = not is_of_run(folder, path, state)
    if is_other and not may_clear:
        raise UsageError(
            f"{path}: is of another run than the one in {folder}; choose an empty output_dir for it, or lose that run with "
            "--overwrite"
        )
    reached = 0 if is_other or resume == "auto" else _reached(folder)
    if reached > state.iteration and not overwrite:
        raise UsageError(
            f"{path}: is of iteration {state.iteration}, and the run in {folder} has reached iteration {reached}; resume with "
            "--resume auto, choose an empty output_dir, or lose what came later with --overwrite"
        )
    say(f"resuming from {path}, iteration {state.iteration}")
    if reached > state.iteration:
        say(f"the run goes back from iteration {reached}: its later checkpoints and records are removed")
    return ResumePoint(state, is_other, reached > state.iteration)


def _holds_run(folder: Path) -> bool:
    """Whether a folder holds what is worth keeping: more than the records of a run that ended before it saved anything."""
    kept = ("checkpoints/*.pt", "report.html", "detections.png", "labels/coco.json")
    return any(path for pattern in kept for path in folder.glob(pattern)) or _evaluated_until(folder) > 0


def _reached(folder: Path) -> int:
    """The last iteration that a folder has a whole checkpoint or an evaluation of; 0 where there is none."""
    try:
        newest = find_checkpoint(folder / "checkpoints")
    except CheckpointError:
        newest = None
    return max(newest[1].iteration if newest else 0, _evaluated_until(folder))


def _evaluated_until(folder: Path) -> int:
    return max((record["iteration"] for record in read_records(folder) if record["kind"] == "eval"), default=0)


def is_of_run(folder: Path, path: Path, state: TrainState) -> bool:
    """Whether a checkpoint at a path is of the run in a folder; of those without an identity, whether it lies there."""
    run_id = run_id_of(folder)
    if run_id and state.run_id:
        return run_id == state.run_id
    return path.resolve().parent == (folder / "checkpoints").resolve()


def find_same_state(world: World, find: Callable[[], T], state_of: Callable[[T], TrainState | None]) -> T:
    """Looks for a state in every process: they have to have the same one, of which the main process alone writes the rest.

    Args:
        world: the processes, which all call this.
        find: looks; may raise a UserError.
        state_of: the state in what was found; None where the run starts.

    Raises:
        UsageError: one process has another state than the main one, such as none on a disk of its own; or all have met a
            UserError, of which the main one's is told.
    """
    if world.size == 1:
        return find()
    found, fault = None, ""
    try:
        found = find()
        state = state_of(found)
        run_id = state and (state.run_id or "unknown")
        have = f"iteration {state.iteration} of run {run_id} ({digest(vars(state))[:8]})" if state else "no checkpoint"
    except UserError as error:
        have = fault = str(error)
    faults = [theirs for _, theirs in world.all_gather((have, fault))]
    if all(faults):
        raise UsageError(faults[0])
    world.require_same(
        have, "give all of them the same checkpoint: name an output_dir that all machines share, or copies with --resume PATH"
    )
    assert found is not None
    return found


def run_id_of(folder: Path) -> str:
    """The identity of the run in a folder; empty where there is none, or one of before runs had one."""
    try:
        return (folder / "run_id").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def best_until(iteration: int) -> str:
    """The name under which the best checkpoint stays when the best is chosen again from an iteration on."""
    return f"best_until_{iteration:08d}.pt"


def make_folder(folder: Path, state: TrainState, found: ResumePoint, world: World) -> None:
    """Makes an output folder ready, once all else is: what is to be removed is lost from here on.

    Args:
        folder: made where it is missing.
        state: where the run begins; its configuration is written as config.yaml, its identity as run_id.
        found: what of the folder is removed.
        world: the processes of the run, which all call this; the main one writes.
    """
    world.all_gather(None)  # every process has looked before one writes
    if not world.is_main:
        return
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for path in checkpoints.glob(f".*{ASIDE}"):  # of a run that was killed while it wrote
        path.unlink()
    old = [path for pattern in OWN_FILES for path in folder.glob(pattern)] if found.clear else []
    if found.state and (found.clear or found.goes_back):  # safe before anything is removed, maybe the file that it came from
        save_checkpoint(checkpoints / LAST, state)
        old = [path for path in old if path != checkpoints / LAST]
    for path in old:
        path.unlink()
    if found.goes_back:
        remove_later(checkpoints, state.iteration)
    if state.best_map < 0 and (checkpoints / BEST).exists():
        if found.goes_back:  # the best one is of a later iteration
            (checkpoints / BEST).unlink()
        elif found.state and found.state.best_map >= 0:  # of another kind of figure, and still the best one of that
            os.replace(checkpoints / BEST, checkpoints / best_until(state.iteration))
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
