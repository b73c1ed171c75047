"""Arrays kept between runs in the user's cache folder. Nothing depends on them: where they cannot be read or written, all is
read from the data set again."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from ssd.system.files import write_whole

HAS_CHANGE_TIME = os.name != "nt"  # Windows has the time of creation in its place
Stamp = tuple[int, int, int, int]


def stamp_of(path: str | Path, status: os.stat_result) -> Stamp:
    """By which any change of a file is noticed: its bytes, its times of change, and which file it is. Programs that unpack and
    copy set the time that users see, but not that of the system; on Windows a digest of the content stands for that.

    Raises:
        OSError: the file cannot be read.
    """
    change = status.st_ctime_ns if HAS_CHANGE_TIME else digest_of(Path(path).read_bytes())
    return status.st_size, status.st_mtime_ns, status.st_ino % 2**63, change


def digest_of(content: bytes | memoryview) -> int:
    """63 bits: equal where the content is, and by chance for one pair of a hundred million photos in a thousand."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


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
