"""What was found out about photos before, so that a second start costs nothing."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from data.annotation import PhotoSize
from ssd.system.files import write_whole

FORMAT = 1


class SeenPhotos:
    """The sizes of one folder's photos, kept between runs in the user's cache folder.

    A photo counts as seen as long as its size in bytes and its time of change are the same. The memory is a help only:
    where it cannot be read or written, photos are looked at again.

    Args:
        folder: the data set.
    """

    def __init__(self, folder: Path) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
        self.path = cache / "ssd300" / f"photos-{name}.json"
        self.known: dict[str, list[int]] = self._read()
        self.changed = False

    def _read(self) -> dict[str, list[int]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return content["photos"] if content["format"] == FORMAT else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def get(self, path: Path) -> PhotoSize | None:
        """The size of a photo that is as it was when it was last looked at."""
        entry = self.known.get(path.name)
        return PhotoSize(*entry[2:]) if entry and entry[:2] == _stamp(path) else None

    def add(self, path: Path, size: PhotoSize) -> None:
        self.known[path.name] = [*_stamp(path), *size]
        self.changed = True

    def save(self) -> None:
        """Writes what was added, all of it or, where that fails, nothing."""
        if not self.changed:
            return
        content = json.dumps({"format": FORMAT, "photos": self.known}).encode()
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, lambda file: file.write(content))


def _stamp(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
