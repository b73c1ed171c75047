"""Load a configuration from YAML and `key=value` overrides: return a validated `Config`, or report one line per error.

Messages are built from the schema and the key, not from pydantic's texts. No torch here, so that typos are reported at once.
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

LENGTHS = {"iterations": "epochs", "epochs": "iterations"}  # two units for the length of a run


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a YAML file, apply `key=value` overrides by dotted name, and validate the result.

    Overriding train.iterations clears train.epochs, and vice versa.

    Raises:
        ConfigError: the file cannot be read, or the file or an override is invalid.
    """
    return parse_config(_read_file(Path(path)), str(path), overrides)


def parse_config(values: dict[str, Any], origin: str = "config", overrides: Sequence[str] = ()) -> Config:
    """Like `load_config`, for plain values that come from YAML or a checkpoint.

    Raises:
        ConfigError: the values are invalid; one line per error, each beginning with `origin`.
    """
    values = copy.deepcopy(values)
    for override in overrides:
        _apply(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    lines: dict[tuple[str, ...], str] = {}  # pydantic reports an error for each alternative of a union
    for fault in faults:
        names, entry = _place(fault["loc"])
        name = ".".join(names)
        if names not in lines or _validator_message(fault):
            lines[names] = f"{origin}: {name}{': ' if name else ''}{_describe(fault, name, entry)}"
    parents = {names[:depth] for names in lines for depth in range(len(names))}
    raise ConfigError("\n".join(line for names, line in lines.items() if names not in parents))


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
    """Set the value of one `key=value` override, in place."""
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
    """Parse the value of an override as YAML. An unquoted path or name is taken literally."""
    if is_text(entry) and text.strip()[:1] not in ("", "'", '"') and is_plain_text(text.strip()):
        return text.strip()
    try:
        return parse_yaml(text, entry)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {_one_line(error)}") from None


def _place(loc: tuple[int | str, ...]) -> tuple[tuple[str, ...], Entry | None]:
    """Return the keys that lead to the location of an error, and the schema entry there.

    For a union, apart from null, pydantic's location also names the alternative that it tried; this is not a key.
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
    """Return the message for one error."""
    given = _shown(fault["input"])
    if _validator_message(fault):
        return _validator_message(fault)
    if fault["type"] == "missing":
        return "is missing and has no default"
    if entry is None:
        near = nearest(name)
        if near == name:  # a dotted name, as in overrides
            section, _, key = name.rpartition(".")
            return f"unknown key (value {given}); in a file, put {key} under {section}:"
        if is_input_size(name):
            return f"unknown key (value {given}); {INPUT_SIZE}"
        return f"unknown key (value {given}){f'; did you mean {near}?' if near else ''}"
    hint = ""
    if is_text(entry) and isinstance(fault["input"], bool | None):
        hint = "; to use it as text, put it in quotes"
    return f"expected {values_of(entry)}, got {given}{hint}"


def _validator_message(fault: Any) -> str:
    """Return the message of one of the schema's validators; empty for any other error."""
    error = fault.get("ctx", {}).get("error")
    return str(error) if isinstance(error, ValueError) else ""


def _shown(value: object) -> str:
    """Format a value for an error message, as in YAML and on one line."""
    value = list(value) if isinstance(value, tuple) else value
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
