"""The files of a source's folder, listed once."""

import os
import posixpath
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.dataset.names import nfc
from data.layouts.source_file import base_folder
from ssd.system.files import is_visited
from ssd.system.images import SUFFIXES

MAX_DEPTH = 12  # nested folders


@dataclass(frozen=True)
class FileTree:
    """The files below a folder, sorted: paths relative to it, with slashes, in Unicode's composed form."""

    folder: Path
    photos: tuple[str, ...]
    files: dict[str, tuple[str, ...]]  # annotation files and the like, by suffix
    others: Counter[str]  # number of other files, by suffix
    named: str = ""  # the JSON file or data.yaml named in place of the folder; it may lie outside of it
    on_disk: Mapping[str, str] = field(default_factory=dict)  # a path's spelling on disk, if different

    def of(self, *suffixes: str) -> list[str]:
        """Return the files with one of these suffixes."""
        return sorted(path for suffix in suffixes for path in self.files.get(suffix, ()))

    def path(self, name: str) -> Path:
        return self.folder / self.on_disk.get(name, name)

    def contents(self) -> str:
        """Describe the folder's contents."""
        counts = {"photos": len(self.photos)} | {suffix: len(self.files[suffix]) for suffix in sorted(self.files)}
        counts |= dict(sorted(self.others.items()))
        files = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no files"
        every = (*self.photos, *(path for paths in self.files.values() for path in paths))
        folders = sorted({path.partition("/")[0] for path in every if "/" in path})
        return f"{files}; folders: {', '.join(folders[:12]) + (', ...' if len(folders) > 12 else '') or 'none'}"


def list_tree(folder: Path, suffixes: Collection[str]) -> FileTree:
    """List all files of a folder in one pass.

    Hidden files and macOS's `__MACOSX` are left out. Links to folders elsewhere are followed, but not links to a folder of
    the folder or above it, which would list photos twice.

    Args:
        folder: the folder, or the file that stands for it.
        suffixes: of the files to list beside the photos; others are counted.

    Raises:
        DataError: the file does not stand for a folder.
        OSError: the folder cannot be listed.
    """
    base = base_folder(folder)
    named = "" if base == folder else Path(os.path.relpath(folder, base)).as_posix()
    photos: list[str] = []
    files: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    listed = [os.path.realpath(base)]
    pending = [("", 0)]
    while pending:
        place, depth = pending.pop()
        with os.scandir(base / place) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name == "__MACOSX":
                    continue
                suffix = posixpath.splitext(name)[1].lower()
                if suffix in SUFFIXES:
                    photos.append(place + name)
                elif suffix in suffixes:
                    files.setdefault(suffix, []).append(place + name)
                elif os.path.isdir(entry.path):  # entry.is_dir raises OSError for a link to itself
                    if depth < MAX_DEPTH and not (entry.is_symlink() and is_visited(entry.path, listed)):
                        pending.append((f"{place}{name}/", depth + 1))
                else:
                    others[suffix or "without suffix"] += 1
    found = {*photos, *(path for paths in files.values() for path in paths)}
    on_disk = {nfc(path): path for path in found if nfc(path) not in found}
    names = {path: name for name, path in on_disk.items()}

    def composed(paths: list[str]) -> tuple[str, ...]:
        return tuple(sorted(names.get(path, path) for path in paths))

    return FileTree(base, composed(photos), {key: composed(paths) for key, paths in files.items()}, others, named, on_disk)
