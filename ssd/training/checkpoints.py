"""The checkpoints that a run keeps: the last one, the best one, and some numbered ones."""

from pathlib import Path

from ssd.weights.checkpoint import TrainState, copy_checkpoint, keep_last, numbered_name, save_checkpoint


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
        """Writes a state under all the names it is to have; last.pt, which a resume looks at first, comes last.

        So a run that is killed in between finds an older last.pt, does again what led here, and writes them all again.
        """
        names = ["best.pt"] if best or not (self.folder / "best.pt").exists() else []
        names += [numbered_name(state.iteration)] if numbered and self.keep else []
        first, *others = [self.folder / name for name in (*names, "last.pt")]
        save_checkpoint(first, state)
        for path in others:
            copy_checkpoint(first, path)
        keep_last(self.folder, self.keep)
