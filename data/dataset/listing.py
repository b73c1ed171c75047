"""What the readers of all layouts list: an entry a photo, and notes; and names as they are compared."""

import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data.dataset.annotation import Annotation, PhotoSize


class Entry(NamedTuple):
    """One photo of a data set, before anything of it is read."""

    name: str  # by which it is divided: independent of where the data set lies
    photo: Path | None
    fault: str  # what is wrong where there is no photo
    read: Callable[[PhotoSize | None], Annotation]  # its objects, given what the photo measures; raises DataError


WARNING = "warning: "  # begins a note of what is likely to be a mistake


def counted(what: str, count: int, total: int) -> str:
    """A note of so many of all photos or labels: a warning above half.

    Args:
        what: is said of them.
    """
    return f"{WARNING if count > total / 2 else ''}{what}"


def attributed(part: str, note: str) -> str:
    """A note with the part of the data that it is of; that it is a warning stays in front."""
    return f"{WARNING if note.startswith(WARNING) else ''}{part}: {note.removeprefix(WARNING)}"


def composed(name: str) -> str:
    """A name as it is compared: macOS and some tools write é as e and an accent, others as one letter."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def unquoted(line: str) -> str:
    """The name in a line of a list, without the quotes that Datumaro and shells put around names with spaces, and what follows
    them."""
    found = re.match(r"""(["'])((?:(?!\1)[^\\]|\\.)*)\1""", line)
    return re.sub(r"""\\(["'])""", r"\1", found[2]) if found else line


def spelt(folder: Path) -> Path:
    """A folder as the file system spells it, where the given letters are composed in another way; otherwise as it is given."""
    if folder.exists() or folder.parent == folder:
        return folder
    parent = spelt(folder.parent)
    with suppress(OSError):
        return next((path for path in parent.iterdir() if composed(path.name) == composed(folder.name)), folder)
    return folder
