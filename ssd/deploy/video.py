"""Videos and cameras: read and written frame by frame."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from ssd.system.errors import UsageError
from ssd.system.images import ImageError, printable

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
CAMERA = "camera:"
DEFAULT_RATE = 25.0  # frames a second, of a camera or a video that does not say
MAX_RATE = 240.0  # of a video that can be believed

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a video that cannot be read is reported once, in our words


class Video:
    """The frames of a video or a camera, for the time of a `with` block.

    Args:
        source: a file, or camera:N.

    Raises:
        UsageError: the camera has no number.
        ImageError: it cannot be opened.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.is_camera = source.startswith(CAMERA)
        self.stack = ExitStack()
        if self.is_camera:
            self.frames = cv2.VideoCapture(_camera_number(source))
        else:
            self.frames = cv2.VideoCapture(str(self.stack.enter_context(_plain_path(Path(source)))))
        self.stack.callback(self.frames.release)
        if not self.frames.isOpened():
            self.stack.close()
            raise ImageError(f"{printable(source)}: cannot be opened as a {'camera' if self.is_camera else 'video'}")
        rate = self.frames.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= MAX_RATE else DEFAULT_RATE  # frames a second
        total = self.frames.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = int(total) if math.isfinite(total) and total > 0 and not self.is_camera else None  # as the file says

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames `[H, W, 3]` uint8 RGB, to the end or to the first that cannot be decoded."""
        while True:
            is_read, frame = self.frames.read()
            if not is_read:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class VideoFile:
    """A video that is written frame by frame, for the time of a `with` block. It takes its name at the end, however the block
    ends: the frames until then are a video that can be played.

    Args:
        path: the file, which ends in .mp4.
        rate: frames a second.
        width: pixels, of all frames.
        height: likewise.

    Raises:
        UsageError: this OpenCV writes no videos.
    """

    def __init__(self, path: Path, rate: float, width: int, height: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.aside, self.size = path, path.with_name(f".{path.stem}.aside{path.suffix}"), (width, height)
        self.stack = ExitStack()
        plain = self.stack.enter_context(_plain_path(self.aside))
        self.writer = cv2.VideoWriter(str(plain), cv2.VideoWriter.fourcc(*"mp4v"), rate, self.size)
        if not self.writer.isOpened():
            self.stack.close()
            raise UsageError(f"{printable(path)}: this OpenCV cannot write videos; use --no-pictures")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.release()
        self.stack.close()
        os.replace(self.aside, self.path)

    def write(self, image: np.ndarray) -> None:
        """One frame `[H, W, 3]` uint8 RGB, scaled where a camera or a video changes its size on the way."""
        if (image.shape[1], image.shape[0]) != self.size:
            image = cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)
        self.writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def _camera_number(source: str) -> int:
    number = source.removeprefix(CAMERA)
    if not number.isdecimal() or len(number) > 4:
        raise UsageError(f"{source}: expected a number, such as camera:0")
    return int(number)


@contextmanager
def _plain_path(path: Path) -> Iterator[Path]:
    """The path of a file as OpenCV's video code takes it, which ends the process on names that are not UTF-8: by a link."""
    if str(path).isprintable():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"video{path.suffix}"
        link.symlink_to(Path(os.path.abspath(path)))
        yield link
