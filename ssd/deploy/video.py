"""Reading videos and cameras, and writing videos, frame by frame."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from ssd.system.errors import Failure, UsageError
from ssd.system.images import ImageError, printable

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
CAMERA = "camera:"
DEFAULT_RATE = 25.0  # frames/s, for cameras and videos without a valid rate
MAX_TICKS = 65_535  # per second in MPEG-4; a rate with three decimals takes 1000 ticks per frame
MAX_LOST = 1000  # consecutive undecodable frames; OpenCV reports them like the end of the video

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # errors are reported once, by this module


class Video:
    """The frames of a video or a camera, a context manager.

    Args:
        source: a file, or camera:N.

    Raises:
        UsageError: N is not a number.
        ImageError: the source cannot be opened.
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
        self.num_lost = 0  # undecodable frames so far
        self.rate = self.frames.get(cv2.CAP_PROP_FPS)  # frames/s, from the file; may be wrong
        total = self.frames.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = int(total) if math.isfinite(total) and total > 0 and not self.is_camera else None  # may be wrong

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each frame, from 0, and the frame `[H, W, 3]` uint8 RGB; skip undecodable ones."""
        number = num_missing = 0
        while num_missing < (1 if self.is_camera else MAX_LOST):
            is_read, frame = self.frames.read()
            if not is_read:
                num_missing += 1
                continue
            self.num_lost += num_missing
            yield number + num_missing, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            number, num_missing = number + num_missing + 1, 0


class VideoFile:
    """A video written frame by frame, a context manager. When the block ends, even by an exception, the frames so far become a
    playable video under its final name.

    Args:
        path: the file, with suffix .mp4.
        rate: frames/s.
        width: of all frames, in pixels.
        height: of all frames, in pixels.

    Raises:
        ImageError: OpenCV cannot write a video of that size and rate.
        Failure: at the end of the block, if the file is incomplete; it is removed.
    """

    def __init__(self, path: Path, rate: float, width: int, height: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.aside, self.size = path, path.with_name(f".{path.stem}.aside{path.suffix}"), (width, height)
        self.num_frames = 0
        self.stack = ExitStack()
        self.aside_plain = str(self.stack.enter_context(_plain_path(self.aside)))
        self.writer = cv2.VideoWriter(self.aside_plain, cv2.VideoWriter.fourcc(*"mp4v"), rate, self.size)
        if not self.writer.isOpened():
            self.stack.close()
            raise ImageError(f"{printable(path)}: cannot write a video of {width} × {height} pixels, {rate:g} frames/s")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.release()
        written = cv2.VideoCapture(self.aside_plain)  # the writer does not report a full disk
        num_written = written.get(cv2.CAP_PROP_FRAME_COUNT)
        written.release()
        self.stack.close()
        if self.num_frames and num_written == self.num_frames:
            os.replace(self.aside, self.path)
            return
        self.aside.unlink(missing_ok=True)
        if self.num_frames:
            raise Failure(f"{printable(self.path)}: the video was incomplete and has been removed; is the disk full?")

    def write(self, image: np.ndarray) -> None:
        """Write one frame `[H, W, 3]` uint8 RGB, scaled if its size differs from the first frame's."""
        if (image.shape[1], image.shape[0]) != self.size:
            image = cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)
        self.num_frames += 1
        self.writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def writable_rate(rate: float) -> float:
    """Return the nearest frame rate that MPEG-4 can store, frames/s; 0 for invalid or too high rates."""
    if not math.isfinite(rate) or rate <= 0:
        return 0.0
    return next((near for digits in (3, 2, 1, 0) if (near := round(rate, digits)) * 10**digits <= MAX_TICKS), 0.0)


def _camera_number(source: str) -> int:
    number = source.removeprefix(CAMERA)
    if not number.isdecimal() or len(number) > 4:
        raise UsageError(f"{source}: expected a number, such as camera:0")
    return int(number)


@contextmanager
def _plain_path(path: Path) -> Iterator[Path]:
    """Yield a path that OpenCV's video code accepts: a link if needed, since names that are not UTF-8 crash it."""
    if str(path).isprintable():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"video{path.suffix}"
        link.symlink_to(Path(os.path.abspath(path)))
        yield link
