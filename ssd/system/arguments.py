"""Arguments of commands: numbers within bounds, and one line for what is wrong with them."""

import argparse
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn, TypeVar

from ssd.config.entries import INPUT_SIZE, child, is_input_size, nearest, section_in, top_entry
from ssd.config.schema import Config

T = TypeVar("T")
UNKNOWN = "unrecognized arguments: "  # as argparse has it


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps the lines of its description, and that says in one line what is wrong."""

    given: Sequence[str] = ()  # arguments, of a command that takes entries of the configuration among them

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix(UNKNOWN).split() if message.startswith(UNKNOWN) else []
        advice = _as_entries([word for word in unknown if word.startswith("-")], self.given)
        self.exit(2, f"error: {message}{advice}; see --help\n")


def _as_entries(options: Sequence[str], given: Sequence[str]) -> str:
    """How to write options that are entries of the configuration, or are so in other trainers.

    Args:
        options: unknown ones.
        given: all arguments; none where the command takes no entries.
    """
    entries, hints = [], []
    for option in options if given else ():
        name, _, value = option.lstrip("-").partition("=")
        following = given[given.index(option) + 1 :] if option in given and not value else []
        if following and not following[0].startswith("-"):
            value = following[0]
        key = nearest(name)
        if is_input_size(name):
            hints.append(INPUT_SIZE)
        elif key and not section_in(child(top_entry(), key)):
            entries.append(f"{key}={value or '...'}")
    return "; ".join(["", *([f"write {shlex.join(entries)}"] if entries else []), *hints])


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Lets a command change entries of a configuration; `example` is the one that its help names."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help=f"change an entry of the configuration, such as {example}"
    )


def config_named(description: str | None, arguments: list[str] | None) -> Config:
    """The configuration that a command is given, with the entries that are changed behind it, where it takes nothing else.

    Raises:
        ConfigError: it cannot be used.
    """
    from ssd.config.file import load_config  # which most commands do without

    parser = Parser(description)
    parser.add_argument("config", metavar="CONFIG", help="the YAML file that training would take")
    add_overrides(parser, "data.root=/data")
    options = parser.parse_intermixed_args(arguments)
    return load_config(options.config, options.overrides)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Reads a whole number within bounds, both included."""
    expected = f"a whole number from {least} on" if most is None else f"a whole number from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return read


def fraction(text: str) -> float:
    """Reads a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def several(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Reads values with commas between them."""
    return lambda text: [read(part) for part in text.split(",")]


def names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads some of the known names, with commas between them."""

    def read(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(map(repr, unknown))}: known are {', '.join(known)}")
        return names

    return read
