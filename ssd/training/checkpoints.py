"""The checkpoints of a run: the last one, the best one, and some numbered ones; how they are kept, and found again."""

import os
from pathlib import Path

from ssd.system.errors import UsageError
from ssd.weights.checkpoint import CheckpointError, TrainState, copy_checkpoint, load_checkpoint, save_checkpoint

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
