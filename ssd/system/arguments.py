"""Arguments of commands: numbers within bounds, and one line for what is wrong with them."""

import argparse
from collections.abc import Callable, Collection
from typing import NoReturn, TypeVar

from ssd.config import Config

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps the lines of its description, and that says in one line what is wrong."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


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
    from ssd.config_file import load_config  # which most commands do without

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
