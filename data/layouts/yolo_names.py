"""The names of YOLO's class numbers, as the files beside the labels have them."""

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.dataset.annotation import DataError
from data.dataset.listing import composed
from data.layouts.named import NULLS

NAME_FILES = ("classes.txt", "_classes.txt", "obj.names", "classes.names", "_darknet.labels")  # with a name a line


def numbered(names: object, path: Path) -> dict[int, str]:
    """The name of each number, from a list or a mapping; blank names leave their number without one.

    Raises:
        DataError: it is neither, or has keys that are no numbers or twice the same, or names that are no text.
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
            key, text = int(str(number)), "" if name is None else composed(str(name).strip())
        except ValueError:
            raise DataError(f"{path}: names: expected numbers as keys, got {reprlib.repr(list(names))}") from None
        if found.setdefault(key, text) != text:  # 3 and 03
            raise DataError(f"{path}: names: class {key} is {found[key]!r} and {text!r}; take one of them away")
    return {number: name for number, name in sorted(found.items()) if name}


def names_in_settings(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """The name of each number in a data.yaml.

    Raises:
        DataError: they cannot be understood, or are not as many as `nc` says.
    """
    found = numbered(content["names"], path)
    count = str(content.get("nc") or "").strip()
    # Blank names, and numbers that are left out, may count or not.
    if count not in NULLS and count not in map(str, (len(found), len(content["names"]), max(found, default=-1) + 1)):
        raise DataError(f"{path}: nc says {count} classes, names has {len(found)}; mend the one that is wrong")
    return found


def names_in_notes(path: Path) -> dict[int, str]:
    """The name of each number in a notes.json, as Label Studio writes it; none where it is another kind of file."""
    try:
        categories = json.loads(path.read_bytes())["categories"]
        return numbered({item["id"]: item["name"] for item in categories}, path)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, DataError):
        return {}
