"""File, split and class names in the form in which they are compared."""

import re
import unicodedata
from contextlib import suppress
from pathlib import Path


def nfc(name: str) -> str:
    """Return a name in Unicode's composed form. macOS and some tools write é as two characters, others as one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def strip_quotes(line: str) -> str:
    """Return the name in a line of a list, without the quotes that Datumaro and shells put around names with spaces.

    Anything after the closing quote is dropped.
    """
    found = re.match(r"""(["'])((?:(?!\1)[^\\]|\\.)*)\1""", line)
    return re.sub(r"""\\(["'])""", r"\1", found[2]) if found else line


def spelled_on_disk(folder: Path) -> Path:
    """Return a folder as the file system spells it, if it exists in another Unicode form; otherwise unchanged."""
    if folder.exists() or folder.parent == folder:
        return folder
    parent = spelled_on_disk(folder.parent)
    with suppress(OSError):
        return next((path for path in parent.iterdir() if nfc(path.name) == nfc(folder.name)), folder)
    return folder
