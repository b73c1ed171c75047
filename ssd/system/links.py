"""Links to folders, which are followed where a folder is listed with all below it."""

import os
from pathlib import Path


def is_listed(link: str, listed: list[str]) -> bool:
    """Whether a link to a folder leads into one that is listed, or to one above it: to follow it would list files twice, or go
    in a circle.

    Args:
        link: its path.
        listed: the folders that are listed with all below them, by their real paths; what the link leads to is added if it is
            none of them.
    """
    target = Path(os.path.realpath(link))
    if any(target.is_relative_to(other) or Path(other).is_relative_to(target) for other in listed):
        return True
    listed.append(str(target))
    return False
