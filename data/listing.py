"""What the readers of all layouts list: an entry a photo, and the photos of a folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.annotation import Annotation, PhotoSize
from data.images import SUFFIXES


class Entry(NamedTuple):
    """One photo of a data set, before anything of it is read."""

    name: str  # by which it is divided: independent of where the data set lies
    photo: Path | None
    fault: str  # what is wrong where there is no photo
    read: Callable[[PhotoSize | None], Annotation]  # its objects, given what the photo measures; raises DataError


def photos_in(folder: Path) -> dict[str, list[Path]]:
    """The photos of each stem; the folder is listed once, since a look for each photo is slow on network disks."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    photos: dict[str, list[Path]] = {}
    for name in names:
        path = folder / name
        if path.suffix.lower() in SUFFIXES:
            photos.setdefault(path.stem, []).append(path)
    return photos


def one_photo(photos: dict[str, list[Path]], stem: str, where: Path) -> tuple[Path | None, str]:
    """The photo of a stem; or None, and what is wrong: there is none, or more than one."""
    paths = photos.get(stem, [])
    if not paths:
        hint = "; write the name without its suffix" if Path(stem).stem in photos else ""
        return None, f"{where / stem}: no photo of that name ({', '.join(SUFFIXES)}){hint}"
    if len(paths) > 1:
        return None, f"{paths[0]}: {paths[1].name} has the same name; remove or rename one of them"
    return paths[0], ""
