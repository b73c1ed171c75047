"""Cache of photo checks between runs, so that each photo is decoded only once for its check."""

import hashlib
import os
from pathlib import Path

import numpy as np
import PIL
import simplejpeg

from data.dataset.disk_cache import FileSignature, file_signature, load_arrays, save_arrays
from data.dataset.images import PhotoInfo
from data.dataset.photo_objects import PhotoSize
from data.dataset.similar import SIDE

# Increase the number when a check may give another result, as it may with another version of a decoder.
FORMAT = f"6-{PIL.__version__}-{simplejpeg.__version__}"
ARRAYS = {"names", "stamps", "sizes", "contents", "thumbnails", "captured", "faulty", "faults"}

PER_PHOTO = ("stamps", "sizes", "contents", "thumbnails", "captured")  # arrays with a row for each photo


class PhotoInfoCache:
    """The checks of one folder's photos. A check is valid as long as the file's signature is the same."""

    def __init__(self, folder: Path) -> None:
        self.name = f"photos-{FORMAT}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}"
        arrays = load_arrays(self.name)
        if set(arrays) != ARRAYS:
            arrays = _arrays([], [], [], {})
        self.arrays = {name: arrays[name] for name in PER_PHOTO}
        self.rows = {name: row for row, name in enumerate(arrays["names"].tolist())}
        self.faults = dict(zip(arrays["faulty"].tolist(), arrays["faults"].tolist(), strict=True))
        self.new: dict[bytes, tuple[FileSignature, PhotoInfo | str]] = {}

    def __contains__(self, path: Path) -> bool:
        """Return whether the photo was ever checked, in any version."""
        return os.fsencode(path.name) in self.rows

    def get(self, path: Path) -> PhotoInfo | str | None:
        """Return the last check of a photo, or its fault; None if the file has changed or was never checked."""
        row = self.rows.get(os.fsencode(path.name))
        try:
            if row is None or tuple(self.arrays["stamps"][row].tolist()) != file_signature(path, os.stat(path)):
                return None
        except OSError:  # the check reports it
            return None
        if row in self.faults:
            return f"{path}{self.faults[row]}"
        size, content, small, captured = (self.arrays[name][row] for name in PER_PHOTO[1:])
        return PhotoInfo(PhotoSize(*size.tolist()), int(content), small.tobytes(), tuple(captured.tolist()))

    def add(self, path: Path, signature: FileSignature, result: PhotoInfo | str) -> None:
        """Add a check.

        Args:
            path: of the photo.
            signature: taken before the check, so that a change during the check is noticed.
            result: of the check, or the photo's fault, which begins with its path.
        """
        self.new[os.fsencode(path.name)] = signature, result.removeprefix(str(path)) if isinstance(result, str) else result

    def save(self) -> None:
        """Write the added checks to disk, together with the earlier ones."""
        if not self.new:
            return
        kept = {name: row for name, row in self.rows.items() if name not in self.new}
        rows = np.array(list(kept.values()), np.int64)
        positions = {row: position for position, row in enumerate(kept.values())}
        faults = {positions[row]: text for row, text in self.faults.items() if row in positions}
        nothing = PhotoInfo(PhotoSize(0, 0, 0, 0), 0, bytes(SIDE * SIDE), (0, 0))
        for position, (_, result) in enumerate(self.new.values(), start=len(kept)):
            if isinstance(result, str):
                faults[position] = result
        arrays = _arrays(
            [*kept, *self.new],
            [signature for signature, _ in self.new.values()],
            [nothing if isinstance(result, str) else result for _, result in self.new.values()],
            faults,
        )
        for name, old in self.arrays.items():
            arrays[name] = np.concatenate([old[rows], arrays[name]])
        save_arrays(self.name, arrays)


def _arrays(
    names: list[bytes], signatures: list[FileSignature], infos: list[PhotoInfo], faults: dict[int, str]
) -> dict[str, np.ndarray]:
    return {
        "names": np.array(names, np.bytes_),
        "stamps": np.array(signatures, np.int64).reshape(-1, 4),
        "sizes": np.array([info.size for info in infos], np.int32).reshape(-1, 4),
        "contents": np.array([info.content for info in infos], np.int64),
        "thumbnails": np.frombuffer(b"".join(info.thumbnail for info in infos), np.uint8).reshape(-1, SIDE, SIDE),
        "captured": np.array([info.captured for info in infos], np.int64).reshape(-1, 2),
        "faulty": np.array(list(faults), np.int64),
        "faults": np.array(list(faults.values()), np.str_),
    }
