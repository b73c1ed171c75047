"""Arrays kept between runs in the user's cache folder. Nothing depends on them: where they cannot be read or written, all is
read from the data set again."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from ssd.system.files import write_whole


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/ssd300`, by default `~/.cache/ssd300`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd300"


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file; none where it is missing, damaged, or of a version that wrote something else."""
    try:
        with np.load(cache_folder() / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception:  # of a damaged file anything can come
        return {}


def save_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays, all of them or, where that fails, nothing."""
    with suppress(OSError, RuntimeError):  # a user without a home has no such folder
        path = cache_folder() / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]


def remove_older(group: str, kept: int) -> None:
    """Removes files whose names begin with `group`, but for the newest."""
    with suppress(OSError, RuntimeError):
        files = sorted(cache_folder().glob(f"{group}-*.npz"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-kept]:
            path.unlink()
