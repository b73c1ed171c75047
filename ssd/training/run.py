"""A run: its configuration, device, processes and output folder, and where it begins: anew or from a checkpoint."""

import math
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import filelock
import torch

from ssd.config import Config
from ssd.preprocessing import Preprocessing
from ssd.system.device import choose_device, choose_precision, keep_freed_memory
from ssd.system.distributed import World, process_group, world_from_environment
from ssd.system.errors import UsageError
from ssd.system.machine import require_cpp_compiler
from ssd.system.stop import StopRequest
from ssd.system.threads import Threads
from ssd.training.checkpoints import ResumePoint, best_until, checkpoint_at, find_same_state, has_best, newest_checkpoint
from ssd.weights.checkpoint import CheckpointError, TrainState

# Entries that may differ between machines: where files are, and how they are read.
PER_MACHINE = {
    "output_dir": True,
    "device": True,
    "data": {"root", "train", "val", "workers", "cache"},
    "model": {"pretrained", "init_from"},
    "train": {"threads", "teacher"},
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
    threads: Threads = field(default_factory=partial(Threads, "all", measures=False))

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
    dtype = choose_precision(config.train.precision, device, config.model.row.separable)
    if config.train.compile and device.type == "cpu":
        require_cpp_compiler("train.compile")
    keep_freed_memory()
    with process_group(world, device), threads_of(config, world, device) as threads:
        yield Run(config, world, device, dtype, Path(config.output_dir), stop, threads)


def threads_of(config: Config, world: World, device: torch.device) -> Threads:
    """Return the threads that a run computes with. Those of several processes, or of compiled code, are never adapted."""
    return Threads(config.train.threads, world.size == 1 and device.type == "cpu" and not config.train.compile)


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
    entries["train.teacher"] = "a teacher" if run.config.train.teacher else "none"  # its path may differ
    every = run.world.all_gather(entries)
    for rank, theirs in enumerate(every):
        for name, value in theirs.items():
            ours = every[0][name]
            if value != ours:
                raise UsageError(
                    f"{name}: process 0 has {ours}, process {rank} has {value}; give all processes the same configuration"
                )


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
    from ssd.training.run_log import read_records  # here because TensorBoard takes seconds to import

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
        state = TrainState({}, list(run.config.data.class_names), preprocessing.to_plain(), config)
        return replace(state, run_id=secrets.token_hex(8), num_processes=run.world.size)
    run_id = (not start.clear and state.run_id) or secrets.token_hex(8)
    first = replace(state, config=config, num_processes=run.world.size, run_id=run_id)
    changed = [name for name in ("eval.metric", "data.val", "data.fold", "data.tiles") if _differs(state.config, config, name)]
    if run.config.data.fold or any(source.val_fraction for source in run.config.data.val):
        data = state.config.get("data", {})
        was, now = data.get("group_by", "none" if data else run.config.data.group_by), run.config.data.group_by
        anew = [] if state.config.get("seed", run.config.seed) == run.config.seed else ["seed"]
        anew += [] if was == now else [f"data.group_by ({was} before)"]
        for name in anew:
            run.say(f"warning: the new {name} splits the folder differently: some photos of data.val were trained on")
        changed += anew
    keeps_best = run.world.all_gather(has_best(run.folder, start))[0]  # only the main process may see the disk
    if state.best_map < 0 or (keeps_best and not changed):
        return first
    reason = f"{' and '.join(changed)} changed" if changed else f"{run.folder} has no valid best.pt of this run"
    kept = f"; the old one is kept as {best_until(state.iteration)}" if keeps_best and not start.goes_back else ""
    run.say(f"{reason}: best.pt is chosen anew from this iteration on{kept}")
    return replace(first, best_map=-1.0, best_loss=math.inf, not_improved=0)


def _differs(theirs: dict[str, Any], ours: dict[str, Any], name: str) -> bool:
    """Return whether a checkpoint's configuration has another value for an entry; converted weights may lack the entry."""
    section, key = name.split(".")
    return key in theirs.get(section, {}) and theirs[section][key] != ours[section][key]
