"""The sizes of photos, and what is wrong with them, kept between runs: each photo is decoded for a check only once."""

import hashlib
import os
from pathlib import Path

import numpy as np

from data.annotation import PhotoSize
from data.disk_cache import load_arrays, save_arrays

Stamp = tuple[int, int]  # bytes, and nanoseconds of the last change
FORMAT = 4  # to be raised when the check of a photo gives something else


class SeenPhotos:
    """The sizes of one folder's photos, or what is wrong with them, kept between runs.

    A photo counts as seen as long as its size in bytes and its time of change are the same.

    Args:
        folder: of the photos.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"photos-{FORMAT}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}"
        arrays = load_arrays(self.name)
        if set(arrays) != {"names", "stamps", "sizes", "faulty", "faults"}:
            arrays = _arrays([], [], [], {})
        self.stamps, self.sizes = arrays["stamps"], arrays["sizes"]
        self.rows = {name: row for row, name in enumerate(arrays["names"].tolist())}
        self.faults = dict(zip(arrays["faulty"].tolist(), arrays["faults"].tolist(), strict=True))
        self.new: dict[bytes, tuple[Stamp, PhotoSize | str]] = {}

    def __contains__(self, path: Path) -> bool:
        """Whether the photo was ever looked at."""
        return os.fsencode(path.name) in self.rows

    def get(self, path: Path) -> PhotoSize | str | None:
        """The size of a photo that is as it was when it was last looked at, or what was wrong with it then."""
        row = self.rows.get(os.fsencode(path.name))
        try:
            if row is None or tuple(self.stamps[row].tolist()) != stamp_of(path):
                return None
        except OSError:  # the look will say so
            return None
        return f"{path}{self.faults[row]}" if row in self.faults else PhotoSize(*self.sizes[row].tolist())

    def add(self, path: Path, stamp: Stamp, found: PhotoSize | str) -> None:
        """Keeps a size, or a line that begins with the photo's path and says what is wrong with it.

        Args:
            path: of the photo.
            stamp: from before the look, so that a change during it is noticed.
            found: by the look.
        """
        self.new[os.fsencode(path.name)] = stamp, found.removeprefix(str(path)) if isinstance(found, str) else found

    def save(self) -> None:
        """Writes what was added to what is there."""
        if not self.new:
            return
        kept = {name: row for name, row in self.rows.items() if name not in self.new}
        rows = np.array(list(kept.values()), np.int64)
        places = {row: place for place, row in enumerate(kept.values())}
        faults = {places[row]: text for row, text in self.faults.items() if row in places}
        nothing = PhotoSize(*[0] * len(PhotoSize._fields))
        for place, (_, found) in enumerate(self.new.values(), start=len(kept)):
            if isinstance(found, str):
                faults[place] = found
        arrays = _arrays(
            [*kept, *self.new],
            [stamp for stamp, _ in self.new.values()],
            [nothing if isinstance(found, str) else found for _, found in self.new.values()],
            faults,
        )
        arrays["stamps"] = np.concatenate([self.stamps[rows], arrays["stamps"]])
        arrays["sizes"] = np.concatenate([self.sizes[rows], arrays["sizes"]])
        save_arrays(self.name, arrays)


def _arrays(names: list[bytes], stamps: list[Stamp], sizes: list[PhotoSize], faults: dict[int, str]) -> dict[str, np.ndarray]:
    return {
        "names": np.array(names, np.bytes_),
        "stamps": np.array(stamps, np.int64).reshape(-1, 2),
        "sizes": np.array(sizes, np.int32).reshape(-1, len(PhotoSize._fields)),
        "faulty": np.array(list(faults), np.int64),
        "faults": np.array(list(faults.values()), np.str_),
    }


def stamp_of(path: Path) -> Stamp:
    """By which a change of a file is noticed."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
