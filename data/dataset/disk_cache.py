"""Arrays cached between runs in the user's cache folder. Without the cache, all files are read again."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from ssd.system.files import write_whole

HAS_CHANGE_TIME = os.name != "nt"  # on Windows, st_ctime is the time of creation
FileSignature = tuple[int, int, int, int]


def file_signature(path: str | Path, status: os.stat_result) -> FileSignature:
    """Return size, modification time, inode and change time of a file, which differ after any change.

    Unpacking and copying may set the modification time, but not the change time. Windows has no change time, so a digest
    of the content takes its place.

    Raises:
        OSError: the file cannot be read.
    """
    change = status.st_ctime_ns if HAS_CHANGE_TIME else content_digest(Path(path).read_bytes())
    return status.st_size, status.st_mtime_ns, status.st_ino % 2**63, change


def content_digest(content: bytes | memoryview) -> int:
    """Return a 63-bit digest. Among a hundred million photos, the probability of any false match is one in a thousand."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/ssd300`, by default `~/.cache/ssd300`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd300"


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """Load the arrays of one file; empty if it is missing, damaged, or of another version."""
    try:
        with np.load(cache_folder() / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception:  # a damaged file can raise anything
        return {}


def save_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write all arrays to one file, or nothing if that fails."""
    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home folder
        path = cache_folder() / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]


def remove_older(group: str, kept: int) -> None:
    """Remove the files whose names begin with `group`, except for the newest."""
    with suppress(OSError, RuntimeError):
        files = sorted(cache_folder().glob(f"{group}-*.npz"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-kept]:
            path.unlink()
