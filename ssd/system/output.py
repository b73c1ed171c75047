"""Standard output and error of a command. Output that cannot be written is dropped; it never stops a command."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO


class Output:
    """A stream that drops what it cannot write: to a closed pipe, a closed terminal or a full disk."""

    def __init__(self, stream: TextIO) -> None:
        self.stream: Any = stream
        self.error: Exception | None = None  # the first error
        with self._dropping_errors():
            # The encoding of a terminal or file may lack letters of a class or file name.
            getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")

    @contextmanager
    def _dropping_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.error = self.error or error

    def write(self, text: str) -> int:
        with self._dropping_errors():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping_errors():
            self.stream.flush()

    def isatty(self) -> bool:
        with suppress(ValueError):
            return self.stream.isatty()
        return False

    def require_whole(self) -> None:
        """Raise OSError if output was lost. A closed pipe is no loss: its reader, such as head, has enough."""
        self.flush()
        number = getattr(self.error, "errno", None)
        if self.error and number != errno.EPIPE:
            raise OSError(number, getattr(self.error, "strerror", None) or str(self.error), "standard output")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def tolerant_output() -> Iterator[Output]:
    """Within the block, printing never raises an error.

    Yields:
        The replacement of standard output.
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
    """Open closed standard streams on the null device. Otherwise the next opened file would get their descriptor, and C
    libraries would print into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free descriptor


def _flush_or_discard(output: Output) -> None:
    """Flush a stream, or else redirect it to the null device: Python would flush it again at exit, and fail."""
    with suppress(ValueError):  # the stream is closed
        try:
            output.stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output.stream.fileno())
            os.close(nowhere)
