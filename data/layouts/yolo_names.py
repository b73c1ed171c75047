"""Names of YOLO's class numbers, from the files beside the labels."""

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.dataset.errors import DataError
from data.dataset.names import nfc
from data.layouts.source_file import NULLS

NAME_FILES = ("classes.txt", "_classes.txt", "obj.names", "classes.names", "_darknet.labels")  # one name per line


def names_by_number(names: object, path: Path) -> dict[int, str]:
    """Return the name of each number, from a list or a mapping. A blank name leaves its number without one.

    Raises:
        DataError: it is neither, a key is not a number or is repeated, or a name is not text.
    """
    pairs: Iterable[tuple[object, object]]
    if isinstance(names, Mapping):
        pairs = names.items()
    elif isinstance(names, Sequence) and not isinstance(names, str):
        pairs = enumerate(names)
    else:
        raise DataError(f"{path}: names: expected a list, or a mapping from numbers, got {reprlib.repr(names)}")
    found: dict[int, str] = {}
    for number, name in pairs:
        if isinstance(name, list | dict):
            raise DataError(f"{path}: names: expected text as the name of {number}, got a list or a mapping")
        try:
            key, text = int(str(number)), "" if name is None else nfc(str(name).strip())
        except ValueError:
            raise DataError(f"{path}: names: expected numbers as keys, got {reprlib.repr(list(names))}") from None
        if found.setdefault(key, text) != text:  # 3 and 03
            raise DataError(f"{path}: names: class {key} is {found[key]!r} and {text!r}; remove one of them")
    return {number: name for number, name in sorted(found.items()) if name}


def names_in_data_yaml(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Return the name of each number in a data.yaml.

    Raises:
        DataError: they are invalid, or `nc` gives another count.
    """
    found = names_by_number(content["names"], path)
    count = str(content.get("nc") or "").strip()
    # Tools may or may not count blank names and missing numbers.
    if count not in NULLS and count not in map(str, (len(found), len(content["names"]), max(found, default=-1) + 1)):
        raise DataError(f"{path}: nc says {count} classes, names has {len(found)}; fix the wrong one")
    return found


def names_in_notes(path: Path) -> dict[int, str]:
    """Return the name of each number in Label Studio's notes.json; empty if it is another kind of file."""
    try:
        categories = json.loads(path.read_bytes())["categories"]
        return names_by_number({item["id"]: item["name"] for item in categories}, path)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, DataError):
        return {}
