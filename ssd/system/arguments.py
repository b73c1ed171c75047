"""Command-line arguments: types with bounds, and errors on one line."""

import argparse
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from ssd.config import Config
from ssd.config.entries import INPUT_SIZE, child, is_input_size, nearest, section_in, top_entry

T = TypeVar("T")
UNKNOWN = "unrecognized arguments: "  # the words of argparse


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the line breaks of its description and reports an error on one line."""

    given: Sequence[str] = ()  # the arguments, if the command accepts configuration entries
    accepts_entries = False

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.accepts_entries:
            self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix(UNKNOWN).split() if message.startswith(UNKNOWN) else []
        advice = _as_entries([word for word in unknown if word.startswith("-")], self.given)
        self.exit(2, f"error: {message}{advice}; see --help\n")


def _as_entries(options: Sequence[str], given: Sequence[str]) -> str:
    """Return advice for options that should be configuration entries, also by the names of other trainers.

    Args:
        options: the unknown options.
        given: all arguments; empty if the command accepts no entries.
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


def add_overrides(parser: Parser, example: str) -> None:
    """Let a command override configuration entries; `example` appears in its help."""
    parser.accepts_entries = True
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"override a configuration entry, such as {example}")


def config_named(description: str | None, arguments: list[str] | None) -> Config:
    """Return the configuration of a command whose only arguments are CONFIG and overrides.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    from ssd.config import load_config  # most commands do not need it

    parser = Parser(description)
    parser.add_argument("config", metavar="CONFIG", help="YAML file of a training run")
    add_overrides(parser, "data.root=/data")
    options = parser.parse_intermixed_args(arguments)
    return load_config(options.config, options.overrides)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a parser of integers from `least` to `most`, both included."""
    expected = f"an integer ≥ {least}" if most is None else f"an integer from {least} to {most}"
    return bounded(int, lambda value: value >= least and (most is None or value <= most), expected)


def bounded(read: Callable[[str], T], fits: Callable[[T], bool], expected: str) -> Callable[[str], T]:
    """Return a parser of values that `fits` accepts; `expected` describes them in messages."""

    def parse(text: str) -> T:
        with suppress(ValueError):
            value = read(text)
            if fits(value):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return parse


fraction = bounded(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def fraction_or_auto(text: str) -> str | float:
    """Return the argument `score_thresh` of `Predictor.from_checkpoint`."""
    return text if text == "auto" else fraction(text)


def several(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a parser of comma-separated values."""
    return lambda text: [read(part) for part in text.split(",")]


def names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return a parser of comma-separated names from `known`."""

    def read(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}")
        return names

    return read
