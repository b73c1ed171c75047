"""The inputs of detection: photos, videos and cameras, found by the arguments of a command, and the names of their results."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ssd.deploy.video import CAMERA, VIDEO_SUFFIXES
from ssd.system.errors import UsageError
from ssd.system.files import is_visited
from ssd.system.images import NOT_READ, SUFFIXES, passed_over, printable

RESOURCE_FORK = "._"  # begins the names of files that macOS leaves beside others


class Input(NamedTuple):
    """One photo, video or camera."""

    name: str  # of its results: its path within the folder that was given, in printable letters; no two share one
    path: str


class Inputs(NamedTuple):
    """All inputs."""

    photos: list[Input]
    videos: list[Input]  # and cameras
    unread: Counter[str]  # how many other photos there are, by suffix


def find_inputs(words: Iterable[str]) -> Inputs:
    """Photos and videos of files, folders (with all below them, and with folders elsewhere that links there lead to) and
    patterns, each file once, and cameras.

    Raises:
        UsageError: a word is no file, or names no photo and no video.
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
    """Where a file is, by whatever links to folders it is reached; a link to the file itself has a name of its own."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def unique_name(candidates: Iterable[str], taken: set[str]) -> str:
    """The first name that is not taken yet, whatever the case of its letters; it is taken from then on."""
    for name in candidates:
        key = unicodedata.normalize("NFC", name).casefold()
        if key not in taken:
            taken.add(key)
            return name
    raise ValueError("no name is left")


def output_name(name: str, suffix: str, taken: set[str]) -> str:
    """The name of what is written for an input, with another suffix: clip.mp4 of clip.avi, or clip.avi.mp4 where the former is
    taken."""
    whole = name + suffix
    return unique_name(chain((str(PurePosixPath(name).with_suffix(suffix)), whole), _numbered(whole)), taken)


def _numbered(name: str) -> Iterator[str]:
    """a/b-2.jpg, a/b-3.jpg, ..."""
    path = PurePosixPath(name)
    return (str(path.with_stem(f"{path.stem}-{number}")) for number in count(2))


def _candidates(path: str, base: str) -> Iterator[str]:
    """Names of a file, from its path within `base` to ever more of the folders above."""
    if path.startswith(CAMERA):
        yield path.replace(":", "-")
        return
    parts = Path(os.path.abspath(path)).parts[1:]
    own = len(Path(os.path.relpath(path, base)).parts)
    for length in range(own, len(parts) + 1):
        yield printable("/".join(parts[-length:]))
    yield from _numbered(printable("/".join(parts)))


def _files(word: str, unread: Counter[str]) -> Iterator[tuple[str, str]]:
    """Photos and videos that a word means, each with the folder that it is named from; others are counted."""
    if "://" in word:
        raise UsageError(f"{word}: addresses are not fetched; download the file and name it")
    if word.startswith(CAMERA):
        yield word, ""
    elif os.path.isdir(word):
        inside = list(_below(word, unread))
        if not inside:
            hint = passed_over(unread) or ", ".join(SUFFIXES + VIDEO_SUFFIXES)
            raise UsageError(f"{printable(word)}: holds no photos and no videos ({hint})")
        yield from ((path, word) for path in inside)
    else:
        matches = [word] if os.path.exists(word) else sorted(glob(word, recursive=True))
        if not matches:
            hint = ", and no file fits the pattern" if has_magic(word) else ""
            raise UsageError(f"{printable(word)}: no such file{hint}")
        files = [(path, os.path.dirname(path) or ".") for path in matches if _is_known(path, unread)]
        files += [(path, folder) for folder in filter(os.path.isdir, matches) for path in _below(folder, unread)]
        if not files:
            known = f"is neither a photo ({', '.join(SUFFIXES)}) nor a video ({', '.join(VIDEO_SUFFIXES)})"
            raise UsageError(f"{printable(word)}: {passed_over(unread) or known}")
        yield from files


def _below(folder: str, unread: Counter[str]) -> Iterator[str]:
    """The photos and videos of a folder and of all below it, in the order of their names. Links to folders elsewhere are
    followed, and photos that are not read are counted."""
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
