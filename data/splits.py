"""Which photos are trained on and which are evaluated on, where a data set does not say so itself."""

import hashlib
from pathlib import Path

from data.annotation import DataError
from ssd.config import SourceConfig


def divide(names: list[str], folder: Path, source: SourceConfig, seed: int) -> list[str]:
    """The train or val part of a data set without splits. A hash of its name decides on each photo, so that neither the order
    of the others nor a change to them moves it across.

    Raises:
        DataError: the source asks for a fraction, but for neither part.
    """
    if source.val_fraction is None:
        return names
    if source.split not in ("train", "val"):
        raise DataError(f"{folder}: val_fraction goes with split train or val of a folder without splits of its own")
    return [name for name in names if (draw(seed, name) < source.val_fraction) == (source.split == "val")]


def draw(seed: int, name: str) -> float:
    """A number in 0..1 that depends on seed and name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") / 2**64
