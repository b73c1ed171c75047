"""What goes wrong through no fault of the program."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """What the user can mend; the message has one line for each fault: file, key or object, and what to do."""


class UsageError(UserError):
    """The command cannot do what it is asked to; the message says what to do instead."""


class Failure(RuntimeError):
    """What was begun well cannot be finished; the message says why, and what may help."""

    can_resume = False  # what was done so far is saved, and resuming may well come further


SAVED = "saved at iteration"  # begins the note on an error after which a run can be resumed


def is_saved(error: BaseException) -> bool:
    """Whether what a run learned before an error is in a checkpoint."""
    return any(note.startswith(SAVED) for note in getattr(error, "__notes__", ()))


def first_line(error: BaseException) -> str:
    """What an error says, without the details that libraries add below; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def optional(what: object) -> Iterator[None]:
    """A block that makes something to look at: whatever goes wrong in it costs that alone, and a warning.

    Args:
        what: is made; a file, or a word for it.
    """
    try:
        yield
    except Exception as error:  # of drawing, encoding and writing: all of them less than what they are about
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: {what}: was not written ({text})", file=sys.stderr, flush=True)
