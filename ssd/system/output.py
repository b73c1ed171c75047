"""What a command prints for those who watch it: where it cannot be written it is lost, which is never a reason to stop."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO


class Output:
    """A stream that takes whatever is printed, and loses what it cannot write: to a pipe that nobody reads any more, to a
    terminal that is gone, to a full disk.

    Args:
        stream: where it is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream: Any = stream
        self.error: Exception | None = None  # the first that came up
        with self._losing():
            # A terminal or a file may lack the letters of a class or a file name.
            getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.error = self.error or error

    def write(self, text: str) -> int:
        with self._losing():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._losing():
            self.stream.flush()

    def isatty(self) -> bool:
        with suppress(ValueError):
            return self.stream.isatty()
        return False

    def require_whole(self) -> None:
        """Raises OSError where anything was lost that somebody wanted: who closes a pipe, as head does, has enough."""
        self.flush()
        number = getattr(self.error, "errno", None)
        if self.error and number != errno.EPIPE:
            raise OSError(number, getattr(self.error, "strerror", None) or str(self.error), "standard output")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def output_for_watchers() -> Iterator[Output]:
    """A block in which nothing that is printed raises an error.

    Yields:
        what takes the place of standard output.
    """
    _open_standard_streams()
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        output, errors = (Output(stream or stack.enter_context(open(os.devnull, "w"))) for stream in before)
        sys.stdout, sys.stderr = output, errors  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield output
        finally:
            for stream in (output, errors):
                _flush_or_discard(stream)
            sys.stdout, sys.stderr = before


def _open_standard_streams() -> None:
    """Leads standard streams that are closed to nowhere: else the next file that is opened takes the place of one, and what
    libraries in C print goes into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free


def _flush_or_discard(output: Output) -> None:
    """What a stream still holds and cannot write goes nowhere: Python would try again at its end, and fail."""
    with suppress(ValueError):  # it is closed
        try:
            output.stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output.stream.fileno())
            os.close(nowhere)
