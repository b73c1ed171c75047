"""The checkpoints of a run: how they are written, which one a run resumes from, and what a new start removes."""

import math
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from ssd.config.yaml import dump_yaml
from ssd.preprocessing import Preprocessing
from ssd.system.distributed import World
from ssd.system.errors import UsageError, UserError
from ssd.system.files import ASIDE, write_whole
from ssd.training.run import Run
from ssd.training.run_log import read_records
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
    """The folder `checkpoints` of a run.

    Args:
        folder: where they are.
        keep: how many numbered ones are kept.
    """

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


def find_start(run: Run, resume: str | None, overwrite: bool) -> ResumePoint:
    """Decide where a run begins. Nothing is written yet.

    Args:
        run: the run.
        resume: `auto` (the newest valid checkpoint, if any), the path of a checkpoint or of a run's folder, or None to start
            from the beginning.
        overwrite: give up files in the folder: another run, or what this run did after the checkpoint.

    Raises:
        UsageError: files in the folder would be lost without `overwrite`, or the processes found different checkpoints.
        CheckpointError: the checkpoint cannot be used.
    """
    return find_same_state(run.world, partial(_find_start, run, resume, overwrite))


def _find_start(run: Run, resume: str | None, overwrite: bool) -> ResumePoint:
    folder = run.folder
    found = None
    if resume == "auto":
        found = newest_checkpoint(folder / "checkpoints")
    elif resume is not None:
        found = checkpoint_at(resume)
    may_clear = overwrite or not _holds_run(folder)
    if found is None:
        if not may_clear:
            what = "the results of a run, but no checkpoint;" if resume else "a run; resume it with --resume auto,"
            raise UsageError(f"{folder}: contains {what} choose another output_dir, or start again with --overwrite")
        return ResumePoint(None, clear=True)
    path, state, skipped = found
    for line in skipped:
        run.say(f"skipped: {line}")
    if not state.optimizer:
        raise CheckpointError(f"{path}: contains weights only and cannot be resumed; use them with model.init_from={path}")
    is_other = not _is_of_run(folder, path, state)
    if is_other and not may_clear:
        raise UsageError(
            f"{path}: belongs to a different run than {folder}; choose an empty output_dir, or give up the run there with "
            "--overwrite"
        )
    reached = 0 if is_other or resume == "auto" else _reached(folder)
    if reached > state.iteration and not overwrite:
        raise UsageError(
            f"{path}: is at iteration {state.iteration}, but the run in {folder} has reached iteration {reached}; resume with "
            "--resume auto, choose an empty output_dir, or give up the later iterations with --overwrite"
        )
    run.say(f"resuming from {path}, iteration {state.iteration}")
    if reached > state.iteration:
        run.say(f"going back from iteration {reached}: later checkpoints and records are removed")
    return ResumePoint(state, is_other, reached > state.iteration)


def _holds_run(folder: Path) -> bool:
    """Return whether a folder holds results worth keeping; train records of a run that saved nothing are not."""
    kept = ("checkpoints/*.pt", "report.html", "detections.png", "labels/coco.json")
    return any(path for pattern in kept for path in folder.glob(pattern)) or _evaluated_until(folder) > 0


def _reached(folder: Path) -> int:
    """Return the last iteration with a valid checkpoint or an evaluation; 0 if there is none."""
    try:
        newest = newest_checkpoint(folder / "checkpoints")
    except CheckpointError:
        newest = None
    return max(newest.state.iteration if newest else 0, _evaluated_until(folder))


def _evaluated_until(folder: Path) -> int:
    return max((record["iteration"] for record in read_records(folder) if record["kind"] == "eval"), default=0)


def _is_of_run(folder: Path, path: Path, state: TrainState) -> bool:
    """Return whether a checkpoint belongs to the run in a folder; by its location if either has no identity."""
    try:
        run_id = (folder / "run_id").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        run_id = ""
    if run_id and state.run_id:
        return run_id == state.run_id
    return path.resolve().parent == (folder / "checkpoints").resolve()


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


def first_state(run: Run, preprocessing: Preprocessing, start: ResumePoint) -> TrainState:
    """Return the state in which training begins, with the current configuration.

    The best mAP is carried over only if it is comparable and its checkpoint still exists. A state that begins in another
    run's folder starts a new run.

    Args:
        run: the run.
        preprocessing: of the network's input.
        start: the state to resume, if any.
    """
    state = start.state
    config = run.config.model_dump(mode="json")
    if state is None:
        names = list(run.config.data.class_names)
        return TrainState(
            {}, names, preprocessing.to_plain(), config, run_id=secrets.token_hex(8), num_processes=run.world.size
        )
    run_id = (not start.clear and state.run_id) or secrets.token_hex(8)
    first = replace(state, config=config, num_processes=run.world.size, run_id=run_id)
    changed = [name for name in ("eval.metric", "data.val", "data.tiles") if _differs(state.config, config, name)]
    is_divided = any(source.val_fraction for source in run.config.data.val)
    if is_divided and state.config.get("seed", run.config.seed) != run.config.seed:
        changed.append("seed")
        run.say("warning: the new seed splits the folder differently: some photos of data.val were trained on")
    has_best = run.world.all_gather(_has_best(run.folder, start))[0]  # only the main process may see the disk
    if state.best_map < 0 or (has_best and not changed):
        return first
    reason = f"{' and '.join(changed)} changed" if changed else f"{run.folder} has no valid best.pt of this run"
    kept = f"; the old one is kept as {best_until(state.iteration)}" if has_best and not start.goes_back else ""
    run.say(f"{reason}: best.pt is chosen anew from this iteration on{kept}")
    return replace(first, best_map=-1.0, best_loss=math.inf, not_improved=0)


def best_until(iteration: int) -> str:
    """Return the name that keeps the old best checkpoint when best.pt is chosen anew from an iteration on."""
    return f"best_until_{iteration:08d}.pt"


def _has_best(folder: Path, start: ResumePoint) -> bool:
    """Return whether best.pt is valid and was written before the run's starting point."""
    best = folder / "checkpoints" / BEST
    if start.state is None or start.clear or not best.exists():
        return False
    try:
        iteration = load_checkpoint(best).iteration
    except CheckpointError:
        return False
    return iteration <= start.iteration or not start.goes_back


def _differs(theirs: dict[str, Any], ours: dict[str, Any], name: str) -> bool:
    """Return whether a checkpoint's configuration has another value for an entry; converted weights may lack the entry."""
    section, key = name.split(".")
    return key in theirs.get(section, {}) and theirs[section][key] != ours[section][key]


def make_folder(run: Run, state: TrainState, start: ResumePoint) -> None:
    """Create or clean the output folder. Old files are lost from here on, so everything else must be ready.

    Args:
        run: the run; all its processes call this, and the main one writes.
        state: where the run begins; its configuration becomes config.yaml, its identity run_id.
        start: says which files to remove.
    """
    run.world.all_gather(None)  # every process has read the folder before it changes
    if not run.world.is_main:
        return
    checkpoints = run.folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for path in checkpoints.glob(f".*{ASIDE}"):  # from a run that was killed while it wrote
        path.unlink()
    old = [path for pattern in RUN_FILES for path in run.folder.glob(pattern)] if start.clear else []
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
    for name, text in (("config.yaml", dump_yaml(state.config)), ("run_id", f"{state.run_id}\n")):
        write_whole(run.folder / name, partial(_write_text, text))


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())
