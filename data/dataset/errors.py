"""Errors in photos and annotations: what cannot be used, what is damaged, and what cannot be reached."""

import re

from ssd.system.errors import UserError

OVERLONG = re.compile(r"[^\s/\\]{256,}")  # longer than any file name


class DataError(UserError):
    """Data that cannot be used. The message has one line per fault: file, object, what to do.

    Overlong words, such as numbers with thousands of digits, are shortened to both ends.
    """

    def __init__(self, message: str) -> None:
        # An error raised in a loader's worker arrives here again, wrapped in the worker's traceback.
        message = message.rsplit("DataError: ", 1)[-1].strip()
        super().__init__(OVERLONG.sub(lambda found: f"{found[0][:20]}...{found[0][-20:]}", message))


class DamagedError(DataError):
    """A photo or annotation file that cannot be read at all. `data.damaged: skip` leaves these out."""


class UnreachableError(DamagedError):
    """A file that the system does not hand out. This may be temporary, so it is never cached."""
