"""Errors that are not faults of the program."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error that the user can correct. The message has one line per fault: file, key or object, and what to do."""


class UsageError(UserError):
    """The command cannot do what was requested; the message says what to do instead."""


class Failure(RuntimeError):
    """A correct command cannot be completed; the message says why, and what may help."""

    can_resume = False  # whether the work so far is saved, and resuming may succeed


SAVED = "saved at iteration"  # start of the note on an error after which the run can be resumed


def is_saved(error: BaseException) -> bool:
    """Return whether a checkpoint was saved after the error."""
    return any(note.startswith(SAVED) for note in getattr(error, "__notes__", ()))


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def optional(what: object) -> Iterator[None]:
    """Turn any error within the block, which writes `what`, into a warning: pictures and reports must not end a run."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: {what}: not written ({text})", file=sys.stderr, flush=True)
