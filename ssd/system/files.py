"""Atomic writing: after a kill, a power cut or a full disk, a file has its old or its new content, never a part of it."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ssd.system.errors import UsageError

ASIDE = ".aside"  # suffix of files while they are written


def write_whole(path: Path, write: Callable[[IO[bytes]], object], outlasts_power_cut: bool = True) -> None:
    """Write a temporary file, sync it to disk, and rename it.

    Args:
        path: the file; replaced if it exists.
        write: writes the content.
        outlasts_power_cut: sync to disk. False saves some milliseconds per file.

    Raises:
        OSError: the disk is full or not writable; `path` is unchanged.
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


def write_text(path: Path, text: str, outlasts_power_cut: bool = True) -> None:
    """Write a text in UTF-8; otherwise as `write_whole`."""
    write_whole(path, lambda file: file.write(text.encode()), outlasts_power_cut)


def require_writable(folder: Path, entry: str) -> None:
    """Check that files can be written to a folder, which need not exist yet. The check leaves no trace.

    Args:
        folder: the folder to write to.
        entry: the configuration entry or option that names it, for the message.

    Raises:
        UsageError: the folder is not writable.
    """
    there = folder.absolute()
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UsageError(f"{entry}: {folder}: is not writable ({there}: {error.strerror}); choose another folder") from None


def looked_in(path: Path) -> str:
    """Return the folder in which a missing relative path was searched, as the end of a message."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def aside_of(path: Path) -> Path:
    """Return the path of the temporary file for `path`, after removing one that a killed run left.

    It must be removed, not overwritten: it may be a hard link to a complete file.
    """
    aside = path.with_name(f".{path.name}{ASIDE}")
    aside.unlink(missing_ok=True)
    return aside


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name to an OSError raised within the block; errors of write and fsync have none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename survives a power cut. Windows cannot open folders; there this does nothing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_visited(link: str, visited: list[str]) -> bool:
    """Return whether a link leads into or above a visited folder. Following it would list files twice, or endlessly.

    Args:
        link: path of a link to a folder.
        visited: real paths of folders that are listed recursively. If the result is False, the target is added.
    """
    target = Path(os.path.realpath(link))
    if any(target.is_relative_to(other) or Path(other).is_relative_to(target) for other in visited):
        return True
    visited.append(str(target))
    return False
