"""Cache of annotations between runs. An unchanged folder is not read again: the system's file information shows any change."""

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
from data.dataset.disk_cache import file_signature, load_arrays, remove_older, save_arrays
from data.dataset.errors import DataError
from data.layouts.find import FILE_SUFFIXES
from data.layouts.source_file import base_folder
from ssd.system.images import SUFFIXES

MAX_FILES = 8  # cached files per folder: its splits, read with different options
TEXTS = "texts"  # the array that holds JSON
TICK_FILES = 1000  # files between calls of `tick`
CLOCK_STEP = 20_000_000  # nanoseconds: longer than one step of the file system's clock


class CachedContent(NamedTuple):
    """The cached content of a source."""

    arrays: dict[str, np.ndarray]
    texts: dict[str, Any]  # plain values


class FolderDigest:
    """A digest of the names and signatures of all files in a source's folder. Links are followed.

    A file that changed just now may change again within one step of the file system's clock. The digest waits that out.

    Args:
        folder: of the source, or the file that stands for it.
        tick: called from time to time; may raise to stop.
    """

    def __init__(self, folder: Path, tick: Callable[[], None]) -> None:
        try:
            base = base_folder(folder)
        except DataError:  # reported when the data is read
            base = folder.parent
        self.folder_id = _digest(str(base.resolve()))
        self.value = self._compute(folder, base, tick)
        if self.newest > time.time_ns() - CLOCK_STEP:
            time.sleep(CLOCK_STEP / 1e9)
            self.value = self._compute(folder, base, tick)

    def _compute(self, folder: Path, base: Path, tick: Callable[[], None]) -> str:
        self.folders: set[tuple[int, int]] = set()
        self.has_photos = False
        self.newest = 0  # nanoseconds: the last change of any file
        value = self._digest_tree(str(base), tick)
        if folder.is_file() and not self.has_photos:  # COCO's file may lie in annotations/, beside the photos' folder
            value += self._digest_tree(str(base.parent), tick)
        if folder.is_file():  # it may lie outside of `base`
            value += f"{folder}/{file_signature(folder, folder.stat())}"
            self.newest = max(self.newest, folder.stat().st_ctime_ns)
        return value

    def _digest_tree(self, base: str, tick: Callable[[], None]) -> str:
        """Return the digest of a folder and those below it. No folder is visited twice."""
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
                            is_read = is_photo or item.name.lower().endswith(FILE_SUFFIXES)
                            signature = file_signature(item.path, status) if is_read else (status.st_size, status.st_mtime_ns)
                            lines.append(f"{item.name}/{signature}")
                        if len(lines) % TICK_FILES == 0:
                            tick()
            except OSError as error:
                lines.append(f"/{error.errno}")
            digest.update(os.fsencode("\n".join([here, *sorted(lines), ""])))
            pending += sorted(below)
        return digest.hexdigest()


class SourceCache:
    """The cache of one source read with one set of options: everything that determines what is read, as plain values.

    It is valid as long as the folder's digest and the code that reads data are unchanged.
    """

    def __init__(self, folder: Path, options: object, digest: FolderDigest) -> None:
        self.digest = digest
        self.group = f"data-{digest.folder_id}"
        self.name = f"{self.group}-{_digest(repr((str(folder), options, _code_digest())))}"

    def load(self) -> CachedContent | None:
        """Load the cached content; None if anything has changed since."""
        arrays = load_arrays(self.name)
        try:
            texts = json.loads(arrays.pop(TEXTS).tobytes())
            return CachedContent(arrays, texts["content"]) if texts["digest"] == self.digest.value else None
        except (KeyError, ValueError, TypeError):
            return None

    def save(self, paths: np.ndarray, arrays: Mapping[str, np.ndarray], texts: Mapping[str, Any]) -> None:
        """Save what was read, unless a photo lies in a folder that the digest does not cover.

        `paths` are those of the photos `[n]`, bytes; `texts` are plain values.
        """
        try:
            folders = {_identity(os.stat(folder)) for folder in set(map(os.path.dirname, paths.tolist()))}
        except OSError:  # removed in the meantime
            return
        if folders <= self.digest.folders:
            content = json.dumps({"digest": self.digest.value, "content": texts}).encode()
            save_arrays(self.name, {**arrays, TEXTS: np.frombuffer(content, np.uint8)})
            remove_older(self.group, MAX_FILES)


def _status(item: os.DirEntry[str]) -> os.stat_result:
    try:
        return item.stat()
    except OSError:  # a broken link
        return item.stat(follow_symlinks=False)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


@cache
def _code_digest() -> str:
    """Return a digest of the code that reads data, so that another version reads the data again."""
    digest = hashlib.sha256()
    for path in code_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def code_files() -> list[Path]:
    """Return the files that decide what is read from a source."""
    data, package = Path(__file__).resolve().parents[1], Path(ssd.__path__[0])
    return sorted([*data.rglob("*.py"), *(path for part in ("", "config", "system") for path in (package / part).glob("*.py"))])
