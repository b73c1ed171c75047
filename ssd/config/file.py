"""Reading a configuration: YAML and `key=value` overrides in, a checked `Config` or one line for each fault out.

Errors are in our own words, made from the schema and the place, whatever pydantic says of them. No torch here, so that
a typo is answered at once.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ssd.config.entries import (
    INPUT_SIZE,
    Entry,
    alternatives,
    child,
    is_input_size,
    is_text,
    nearest,
    section_in,
    top_entry,
    values_of,
)
from ssd.config.schema import Config, ConfigError
from ssd.config.yaml import ESCAPED, is_plain_text, parse_yaml

LENGTHS = {"iterations": "epochs", "epochs": "iterations"}  # of a run: one or the other


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides by dotted name, and checks the result.

    An override of train.iterations or train.epochs clears the other of the two.

    Raises:
        ConfigError: the file cannot be read, or something in it or in an override cannot be used.
    """
    return parse_config(_read_file(Path(path)), str(path), overrides)


def parse_config(values: dict[str, Any], origin: str = "config", overrides: Sequence[str] = ()) -> Config:
    """`load_config` of plain values, as they come from YAML or from a checkpoint.

    Raises:
        ConfigError: with one line for each fault, each beginning with `origin`.
    """
    values = copy.deepcopy(values)
    for override in overrides:
        _apply(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    lines: dict[tuple[str, ...], str] = {}  # pydantic has a fault for each alternative of an entry
    for fault in faults:
        names, entry = _place(fault["loc"])
        name = ".".join(names)
        if names not in lines or _own_words(fault):
            lines[names] = f"{origin}: {name}{': ' if name else ''}{_describe(fault, name, entry)}"
    told_below = {names[:depth] for names in lines for depth in range(len(names))}
    raise ConfigError("\n".join(line for names, line in lines.items() if names not in told_below))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"), top_entry())
    except OSError as error:
        where = "" if path.is_absolute() or path.exists() else f", in {Path.cwd()}"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{where}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a UTF-8 text file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {_one_line(error)}") from None
    if not isinstance(values, dict):
        given = "an empty file" if values is None else _shown(values)
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {given}")
    return values


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    hint = "; indent by spaces, not by tabs" if "'\\t'" in problem else ""
    hint = f"; {ESCAPED}" if "escape" in problem and problem != ESCAPED else hint
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1}){hint}" if mark else problem


def _apply(values: dict[str, Any], override: str) -> None:
    """Puts the value of one `key=value` in its place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, such as train.lr=5e-4")
    *parents, last = key.split(".")
    node: Any = values
    entry: Entry | None = top_entry()
    for place, part in enumerate(parents):
        if isinstance(node, list):
            position = _position(node, part, override)
            node, entry = node[position], child(entry, position)
        else:
            if node.get(part) is None:
                node[part] = {}
            node, entry = node[part], child(entry, part)
        if not isinstance(node, dict | list):
            name = ".".join(parents[: place + 1])
            raise ConfigError(f"override {override!r}: {name} is a single value and has no entries below it")
    spot: Any = _position(node, last, override) if isinstance(node, list) else last
    value = _override_value(text, child(entry, spot), override)
    node[spot] = value
    if parents == ["train"] and last in LENGTHS and value is not None:
        values["train"][LENGTHS[last]] = None


def _position(items: list[Any], part: str, override: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(items):
        raise ConfigError(f"override {override!r}: expected a list position 0 to {len(items) - 1}, got {part!r}")
    return int(part)


def _override_value(text: str, entry: Entry | None, override: str) -> Any:
    """What stands behind the equals sign: YAML, but for a path or a name as it stands, whatever is in it."""
    if is_text(entry) and text.strip()[:1] not in ("", "'", '"') and is_plain_text(text.strip()):
        return text.strip()
    try:
        return parse_yaml(text, entry)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {_one_line(error)}") from None


def _place(loc: tuple[int | str, ...]) -> tuple[tuple[str, ...], Entry | None]:
    """The names that lead to a fault's place, and the entry there.

    Of an entry with several alternatives, beside null, pydantic also names the one that it tried, which is no key.
    """
    names: list[str] = []
    entry: Entry | None = top_entry()
    is_tried_named = False
    for part in loc:
        if not is_tried_named and sum(each.get("type") != "null" for each in alternatives(entry or {})) > 1:
            is_tried_named = True
        elif section_in(entry) or (isinstance(part, int) and child(entry, part)):
            text = str(part)
            names.append(text if text.isprintable() else repr(text))
            entry, is_tried_named = child(entry, part), False
    return tuple(names), entry


def _describe(fault: Any, name: str, entry: Entry | None) -> str:
    """What is wrong in one place."""
    given = _shown(fault["input"])
    if _own_words(fault):
        return _own_words(fault)
    if fault["type"] == "missing":
        return "is missing and has no default"
    if entry is None:
        near = nearest(name)
        if near == name:  # a dotted name, as overrides have it
            section, _, key = name.rpartition(".")
            return f"unknown key (value {given}); in a file, {key} stands below {section}:"
        if is_input_size(name):
            return f"unknown key (value {given}); {INPUT_SIZE}"
        return f"unknown key (value {given}){f'; did you mean {near}?' if near else ''}"
    hint = ""
    if is_text(entry) and isinstance(fault["input"], bool | None):
        hint = "; where a word is meant, put it in quotes"
    return f"expected {values_of(entry)}, got {given}{hint}"


def _own_words(fault: Any) -> str:
    """What a validator of the schema's says; nothing where it is none of them that found the fault."""
    own = fault.get("ctx", {}).get("error")
    return str(own) if isinstance(own, ValueError) else ""


def _shown(value: object) -> str:
    """A value in an error message, in YAML's words, on one line."""
    value = list(value) if isinstance(value, tuple) else value
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
