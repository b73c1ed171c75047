"""What image libraries written in C print to standard error while they decode.

libjpeg goes on with what is left of a damaged photo, prints one line that names no file, and reports success: that line, read
here, is all there is to learn of the damage.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDERR = 2  # the file descriptor, which libraries in C write to whatever Python's sys.stderr is
PIPE = 2**16  # bytes that are read at once: as many as a pipe holds

# The messages of libjpeg (jerror.h) and libpng. Anything else that is printed meanwhile is passed on: they need not begin a
# line, since a progress bar does not end one.
_MESSAGES = re.compile(
    rb"(?:Corrupt JPEG data: |Premature end of JPEG file|Inconsistent progression sequence|Invalid SOS parameters|"
    rb"Warning: unknown JFIF|Unknown Adobe color transform|Application transferred too many|libpng (?:warning|error): )[^\n]*\n"
)


class _Listener:
    """Lends standard error to the blocks that listen, which several threads may do at once: each gets what is said in its
    time."""

    def __init__(self) -> None:
        self.turn = threading.Condition()
        self.blocks: dict[int, list[str]] = {}  # what each heard so far, by its thread
        self.is_alone = False
        self.stderr = self.pipe = -1  # where it led before, and what it leads into meanwhile

    @contextmanager
    def listen(self, alone: bool) -> Iterator[list[str]]:
        thread, heard = threading.get_ident(), []
        try:  # from here on: Ctrl-C may come between any two lines, and is to be answered on a terminal that is there
            with self.turn:
                self.turn.wait_for(lambda: not (self.is_alone or (alone and self.blocks)))
                if not self.blocks:
                    self._redirect()
                self.blocks[thread] = heard
                self.is_alone = alone
            yield heard
        finally:
            with self.turn:
                is_last = self.blocks.keys() <= {thread}
                if is_last and self.stderr >= 0:
                    os.dup2(self.stderr, STDERR)
                if self.pipe >= 0:
                    self._hear()
                if self.blocks.pop(thread, None) is not None:
                    self.is_alone = False
                if is_last:
                    self._close()
                self.turn.notify_all()

    def _redirect(self) -> None:
        self.stderr = os.dup(STDERR)
        self.pipe, end = os.pipe()
        os.set_blocking(self.pipe, False)
        os.set_blocking(end, False)  # who says more than a pipe holds loses it, and does not wait for ever
        os.dup2(end, STDERR)
        os.close(end)

    def _close(self) -> None:
        for descriptor in (self.stderr, self.pipe):
            if descriptor >= 0:
                os.close(descriptor)
        self.stderr = self.pipe = -1

    def _hear(self) -> None:
        try:
            said = os.read(self.pipe, PIPE)
        except BlockingIOError:
            return
        messages = [message.decode("latin-1").strip() for message in _MESSAGES.findall(said)]
        for heard in self.blocks.values():
            heard += messages
        with suppress(OSError):  # where standard error leads cannot be written to
            os.write(self.stderr, _MESSAGES.sub(b"", said))


_listener = _Listener()


@contextmanager
def heard_messages(alone: bool = False) -> Iterator[list[str]]:
    """A block in which libraries decode, and the terminal sees none of their messages.

    Args:
        alone: waits until no other thread is in such a block, and keeps others out: what is said is then of this one.

    Yields:
        a list that has the lines when the block has ended: those of other threads in such a block too, unless `alone`.

    Raises:
        OSError: the process has no file descriptors left.
    """
    if not hasattr(os, "set_blocking") or not _is_open(STDERR):  # Windows before Python 3.12; a daemon that has none
        yield []
        return
    with _listener.listen(alone) as heard:
        yield heard


def tell(line: str) -> None:
    """Prints a line to standard error, also while a thread is in such a block, whose end it need not live to see."""
    os.write(_listener.stderr if _listener.stderr >= 0 else STDERR, f"{line}\n".encode(errors="backslashreplace"))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
