"""Writing files so that a kill, a power cut or a full disk leaves the old content or the new, never half of it."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ssd.system.errors import UsageError

ASIDE = ".aside"  # ends the names of files that are still being written


def write_whole(path: Path, write: Callable[[IO[bytes]], object], outlasts_power_cut: bool = True) -> None:
    """Writes a file aside, makes it safe on disk, and renames it.

    Args:
        path: the file; replaced where it exists.
        write: writes the content.
        outlasts_power_cut: False: the system may take its time to bring it to the disk, which saves some milliseconds a file.

    Raises:
        OSError: the disk is full or cannot be written; `path` is as it was.
    """
    aside = aside_of(path)
    with naming(path):
        try:
            with open(aside, "wb") as file:
                write(file)
                file.flush()
                if outlasts_power_cut:
                    os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        if outlasts_power_cut:
            sync_folder(path.parent)


def require_writable(folder: Path, entry: str) -> None:
    """Looks, before any work is done, whether files can be written to a folder, which may have to be made; leaves no trace.

    Args:
        folder: where files are going to be.
        entry: of a configuration or a command, that names it.

    Raises:
        UsageError: none can be written there.
    """
    there = folder.absolute()
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UsageError(f"{entry}: {folder}: cannot be written to ({there}: {error.strerror}); name another place") from None


def looked_in(path: Path) -> str:
    """Where a relative path that is missing was looked for, to say so."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def aside_of(path: Path) -> Path:
    """Where a file is written before it takes its name; what a killed run left there is removed.

    Removed, not written over: it may be a second name of a file that is whole.
    """
    aside = path.with_name(f".{path.name}{ASIDE}")
    aside.unlink(missing_ok=True)
    return aside


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within the block names the file, which those of write and fsync do not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system lets a folder be opened; Windows does not."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
