"""Data sets as they were read, kept between runs: a second start looks at what the system says of their files, and reads none
of them where that tells of every change."""

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ssd
from data.dataset.annotation import DataError
from data.dataset.disk_cache import load_arrays, remove_older, save_arrays, stamp_of
from data.layouts.named import base_of
from data.layouts.tree import READ
from ssd.system.images import SUFFIXES

KEPT = 8  # files of one folder: its splits, read with several options
SAID = "said"  # the array that is JSON
TICK = 1000  # files
REST = 20_000_000  # nanoseconds: more than a system's clock of changes takes for a step


class Content(NamedTuple):
    """What is kept of a data set."""

    arrays: dict[str, np.ndarray]
    said: dict[str, Any]  # plain values


class FolderDigest:
    """A digest of the names and stamps of all that lies in a data set's folder. Links are followed.

    A file that has changed just now may change once more within the same step of the system's clock: it is waited for.

    Args:
        folder: the data set, or a file in its folder.
        tick: called now and then; may raise to stop a long look.
    """

    def __init__(self, folder: Path, tick: Callable[[], None]) -> None:
        try:
            base = base_of(folder)
        except DataError:  # which those who read the data tell
            base = folder.parent
        self.place = _digest(str(base.resolve()))
        self.stamp = self._stamp(folder, base, tick)
        if self.newest > time.time_ns() - REST:
            time.sleep(REST / 1e9)
            self.stamp = self._stamp(folder, base, tick)

    def _stamp(self, folder: Path, base: Path, tick: Callable[[], None]) -> str:
        self.folders: set[tuple[int, int]] = set()
        self.has_photos = False
        self.newest = 0  # nanoseconds: the last change of a file
        stamp = self._look(str(base), tick)
        if folder.is_file() and not self.has_photos:  # as where COCO's file lies in annotations/, beside the photos' folder
            stamp += self._look(str(base.parent), tick)
        if folder.is_file():  # it may lie outside
            stamp += f"{folder}/{stamp_of(folder, folder.stat())}"
            self.newest = max(self.newest, folder.stat().st_ctime_ns)
        return stamp

    def _look(self, base: str, tick: Callable[[], None]) -> str:
        """The digest of one folder and those below it; none is looked at twice."""
        digest = hashlib.sha256()
        pending = [base]
        while pending:
            here = pending.pop()
            lines, below = [], []
            try:
                self.folders.add(_identity(os.stat(here)))
                with os.scandir(here) as items:
                    for item in items:
                        status = _status(item)
                        if stat.S_ISDIR(status.st_mode):
                            if _identity(status) not in self.folders:
                                below.append(item.path)
                            lines.append(f"{item.name}/")
                        else:
                            is_photo = item.name.lower().endswith(SUFFIXES)
                            self.has_photos |= is_photo
                            self.newest = max(self.newest, status.st_ctime_ns)
                            is_read = is_photo or item.name.lower().endswith(READ)
                            stamp = stamp_of(item.path, status) if is_read else (status.st_size, status.st_mtime_ns)
                            lines.append(f"{item.name}/{stamp}")
                        if len(lines) % TICK == 0:
                            tick()
            except OSError as error:
                lines.append(f"/{error.errno}")
            digest.update(os.fsencode("\n".join([here, *sorted(lines), ""])))
            pending += sorted(below)
        return digest.hexdigest()


class SourceCache:
    """The place of one data set, read in one way, in the user's cache folder.

    What is there counts as long as a look at the data set's folder is the same as before it was read, and so is the code that
    reads.

    Args:
        folder: the data set, or a file in its folder.
        reading: all that decides on what is read, as plain values.
        digest: of the folder as it is now.
    """

    def __init__(self, folder: Path, reading: object, digest: FolderDigest) -> None:
        self.digest = digest
        self.group = f"data-{digest.place}"
        self.name = f"{self.group}-{_digest(repr((str(folder), reading, _code())))}"

    def recall(self) -> Content | None:
        """What was kept, if nothing has changed since."""
        arrays = load_arrays(self.name)
        try:
            said = json.loads(arrays.pop(SAID).tobytes())
            return Content(arrays, said["content"]) if said["stamp"] == self.digest.stamp else None
        except (KeyError, ValueError, TypeError):
            return None

    def remember(self, paths: np.ndarray, arrays: Mapping[str, np.ndarray], said: Mapping[str, Any]) -> None:
        """Keeps what was read, unless a photo lies in a folder that would not be looked at.

        Args:
            paths: of the photos `[n]`, bytes.
            arrays: what was read.
            said: what belongs to it, as plain values.
        """
        try:
            theirs = {_identity(os.stat(folder)) for folder in set(map(os.path.dirname, paths.tolist()))}
        except OSError:  # gone in the meantime
            return
        if theirs <= self.digest.folders:
            content = json.dumps({"stamp": self.digest.stamp, "content": said}).encode()
            save_arrays(self.name, {**arrays, SAID: np.frombuffer(content, np.uint8)})
            remove_older(self.group, KEPT)


def _status(item: os.DirEntry[str]) -> os.stat_result:
    try:
        return item.stat()
    except OSError:  # a link that leads nowhere
        return item.stat(follow_symlinks=False)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


@cache
def _code() -> str:
    """Return a digest of the code that reads data: another version reads everything again."""
    digest = hashlib.sha256()
    for path in code_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def code_files() -> list[Path]:
    """Return the files that decide what is read from a data set."""
    data, paper = Path(__file__).resolve().parents[1], Path(ssd.__path__[0])
    return sorted([*data.rglob("*.py"), *paper.glob("*.py"), *(paper / "system").glob("*.py")])
