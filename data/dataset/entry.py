"""What a format's reader returns: one entry per photo, and notes about the folder."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.dataset.photo_objects import PhotoObjects, PhotoSize

WARNING = "warning: "  # prefix of a note about a likely mistake


class PhotoEntry(NamedTuple):
    """One photo, before its files are read."""

    name: str  # identifies the photo when its folder is split, wherever it lies
    photo: Path | None
    fault: str  # why there is no photo
    read: Callable[[PhotoSize | None], PhotoObjects]  # reads its objects, given the photo's size; raises DataError


def warn_if_most(note: str, count: int, total: int) -> str:
    """Return a note, marked as a warning if it concerns more than half of all photos or labels."""
    return f"{WARNING if count > total / 2 else ''}{note}"


def prefix_note(part: str, note: str) -> str:
    """Put the part of the data in front of a note. A warning stays marked as one."""
    return f"{WARNING if note.startswith(WARNING) else ''}{part}: {note.removeprefix(WARNING)}"
