"""What the readers of all layouts list: an entry a photo."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.annotation import Annotation, PhotoSize


class Entry(NamedTuple):
    """One photo of a data set, before anything of it is read."""

    name: str  # by which it is divided: independent of where the data set lies
    photo: Path | None
    fault: str  # what is wrong where there is no photo
    read: Callable[[PhotoSize | None], Annotation]  # its objects, given what the photo measures; raises DataError
