"""What a look at photos showed, kept between runs: each photo is decoded for a check only once."""

import hashlib
import os
from pathlib import Path

import numpy as np
import PIL
import simplejpeg

from data.dataset.annotation import PhotoSize
from data.dataset.disk_cache import Stamp, load_arrays, save_arrays, stamp_of
from data.dataset.images import Look

# To be raised when the check of a photo gives something else, as it may do with another version of a decoder.
FORMAT = f"5-{PIL.__version__}-{simplejpeg.__version__}"
ARRAYS = {"names", "stamps", "sizes", "contents", "faulty", "faults"}


class SeenPhotos:
    """What a look at one folder's photos showed, or what is wrong with them, kept between runs.

    A photo counts as seen as long as its stamp is the same.

    Args:
        folder: of the photos.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"photos-{FORMAT}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}"
        arrays = load_arrays(self.name)
        if set(arrays) != ARRAYS:
            arrays = _arrays([], [], [], {})
        self.stamps, self.sizes, self.contents = arrays["stamps"], arrays["sizes"], arrays["contents"]
        self.rows = {name: row for row, name in enumerate(arrays["names"].tolist())}
        self.faults = dict(zip(arrays["faulty"].tolist(), arrays["faults"].tolist(), strict=True))
        self.new: dict[bytes, tuple[Stamp, Look | str]] = {}

    def __contains__(self, path: Path) -> bool:
        """Whether the photo was ever looked at."""
        return os.fsencode(path.name) in self.rows

    def get(self, path: Path) -> Look | str | None:
        """What the last look at a photo showed, if it is as it was then, or what was wrong with it."""
        row = self.rows.get(os.fsencode(path.name))
        try:
            if row is None or tuple(self.stamps[row].tolist()) != stamp_of(path, os.stat(path)):
                return None
        except OSError:  # the look will say so
            return None
        if row in self.faults:
            return f"{path}{self.faults[row]}"
        return Look(PhotoSize(*self.sizes[row].tolist()), int(self.contents[row]))

    def add(self, path: Path, stamp: Stamp, found: Look | str) -> None:
        """Keeps what a look showed, or a line that begins with the photo's path and says what is wrong with it.

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
        nothing = Look(PhotoSize(0, 0, 0, 0), 0)
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
        arrays["contents"] = np.concatenate([self.contents[rows], arrays["contents"]])
        save_arrays(self.name, arrays)


def _arrays(names: list[bytes], stamps: list[Stamp], looks: list[Look], faults: dict[int, str]) -> dict[str, np.ndarray]:
    return {
        "names": np.array(names, np.bytes_),
        "stamps": np.array(stamps, np.int64).reshape(-1, 4),
        "sizes": np.array([look.size for look in looks], np.int32).reshape(-1, 4),
        "contents": np.array([look.content for look in looks], np.int64),
        "faulty": np.array(list(faults), np.int64),
        "faults": np.array(list(faults.values()), np.str_),
    }
