"""The photos, videos and cameras that a command's arguments name, and the names of their results."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ssd.deploy.video import CAMERA, VIDEO_SUFFIXES
from ssd.system.errors import UsageError
from ssd.system.files import is_visited
from ssd.system.images import NOT_READ, SUFFIXES, passed_over, printable
from ssd.weights.sources import DEFAULT

RESOURCE_FORK = "._"  # prefix of the files that macOS writes beside others


class Input(NamedTuple):
    """One photo, video or camera."""

    name: str  # of its results: its path within the given folder, in printable characters; unique
    path: str


class Inputs(NamedTuple):
    """All inputs."""

    photos: list[Input]
    videos: list[Input]  # and cameras
    unread: Counter[str]  # number of photos in unsupported formats, by suffix


def split_checkpoint(words: Sequence[str]) -> tuple[str, list[str]]:
    """Divide arguments into a checkpoint, `DEFAULT` unless the first is one, and inputs.

    The first is an input if it names a camera, has the suffix of a photo or a video, is a pattern, or is a folder other than
    that of a run.
    """
    first = words[0] if words else ""
    is_folder = os.path.isdir(first) and not os.path.isdir(os.path.join(first, "checkpoints"))
    is_pattern = has_magic(first) and not os.path.exists(first)
    is_file = first.lower().endswith((*SUFFIXES, *VIDEO_SUFFIXES, *NOT_READ))
    if not words or is_folder or is_pattern or is_file or first.startswith(CAMERA) or "://" in first:
        return DEFAULT, list(words)
    return first, list(words[1:])


def find_inputs(words: Iterable[str]) -> Inputs:
    """Return the photos, videos and cameras that arguments name: files, folders (searched recursively, through links too),
    patterns or camera:N. Each file is listed once.

    Raises:
        UsageError: an argument is not a file, or names no photo and no video.
        OSError: a folder cannot be read.
    """
    found = Inputs([], [], Counter())
    seen: set[str] = set()
    names: set[str] = set()
    for word in words:
        for path, base in _files(word, found.unread):
            place = path if path.startswith(CAMERA) else _place(path)
            if place not in seen:
                seen.add(place)
                entry = Input(unique_name(_candidates(path, base), names), path)
                (found.videos if _is_video(path) else found.photos).append(entry)
    return found


def _place(path: str) -> str:
    """Return a file's path with links to folders resolved; a link to the file itself counts as another file."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def unique_name(candidates: Iterable[str], taken: set[str]) -> str:
    """Return the first name not in `taken`, ignoring case, and add it there."""
    for name in candidates:
        key = unicodedata.normalize("NFC", name).casefold()
        if key not in taken:
            taken.add(key)
            return name
    raise ValueError("all candidate names are taken")


def output_name(name: str, suffix: str, taken: set[str]) -> str:
    """Return an unused file name for an input's result: clip.mp4 for clip.avi, or clip.avi.mp4 if that is taken."""
    whole = name + suffix
    return unique_name(chain((str(PurePosixPath(name).with_suffix(suffix)), whole), _numbered(whole)), taken)


def _numbered(name: str) -> Iterator[str]:
    """Return a/b-2.jpg, a/b-3.jpg, ..."""
    path = PurePosixPath(name)
    return (str(path.with_stem(f"{path.stem}-{number}")) for number in count(2))


def _candidates(path: str, base: str) -> Iterator[str]:
    """Yield names for a file: its path within `base`, then with more and more parent folders, then numbered."""
    if path.startswith(CAMERA):
        yield path.replace(":", "-")
        return
    parts = Path(os.path.abspath(path)).parts[1:]
    own = len(Path(os.path.relpath(path, base)).parts)
    for length in range(own, len(parts) + 1):
        yield printable("/".join(parts[-length:]))
    yield from _numbered(printable("/".join(parts)))


def _files(word: str, unread: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield the photos and videos that an argument names, each with its base folder; count unsupported photos."""
    if "://" in word:
        raise UsageError(f"{word}: URLs are not supported; download the file and name it")
    if word.startswith(CAMERA):
        yield word, ""
    elif os.path.isdir(word):
        inside = list(_below(word, unread))
        if not inside:
            hint = passed_over(unread) or ", ".join(SUFFIXES + VIDEO_SUFFIXES)
            raise UsageError(f"{printable(word)}: contains no photos or videos ({hint})")
        yield from ((path, word) for path in inside)
    else:
        matches = [word] if os.path.exists(word) else sorted(glob(word, recursive=True))
        if not matches:
            hint = ", and no file matches the pattern" if has_magic(word) else ""
            raise UsageError(f"{printable(word)}: no such file{hint}")
        files = [(path, os.path.dirname(path) or ".") for path in matches if _is_known(path, unread)]
        files += [(path, folder) for folder in filter(os.path.isdir, matches) for path in _below(folder, unread)]
        if not files:
            known = f"is neither a photo ({', '.join(SUFFIXES)}) nor a video ({', '.join(VIDEO_SUFFIXES)})"
            raise UsageError(f"{printable(word)}: {passed_over(unread) or known}")
        yield from files


def _below(folder: str, unread: Counter[str]) -> Iterator[str]:
    """Return the photos and videos in a folder and its subfolders, sorted by name, following links to folders elsewhere; count
    unsupported photos."""
    listed = [os.path.realpath(folder)]

    def inside(folder: str) -> Iterator[str]:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        yield from (entry.path for entry in entries if _is_known(entry.path, unread) and os.path.isfile(entry.path))
        for entry in entries:
            is_link = entry.is_symlink() and os.path.isdir(entry.path)
            if (is_link and not is_visited(entry.path, listed)) or entry.is_dir(follow_symlinks=False):
                yield from inside(entry.path)

    return inside(folder)


def _is_known(path: str, unread: Counter[str]) -> bool:
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    unread[suffix] += suffix in NOT_READ and not name.startswith(RESOURCE_FORK)
    return not name.startswith(RESOURCE_FORK) and name.lower().endswith(SUFFIXES + VIDEO_SUFFIXES)


def _is_video(path: str) -> bool:
    return path.startswith(CAMERA) or path.lower().endswith(VIDEO_SUFFIXES)
