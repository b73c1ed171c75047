"""Detection of objects in many photos and videos, with results in an output folder."""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ssd.deploy.inputs import Input, output_name
from ssd.deploy.results import FrameDetections, Results
from ssd.deploy.video import DEFAULT_RATE, Video, VideoFile, writable_rate
from ssd.inference.pictures import draw_boxes
from ssd.inference.predict import Detections
from ssd.inference.predictor import Predictor
from ssd.system.errors import UsageError
from ssd.system.files import require_writable
from ssd.system.images import DecodedPhoto, ImageError, Reduction, printable, read_reduced, whole, write_picture
from ssd.system.machine import num_cores
from ssd.system.threads import Threads

MOST_THREADS = 4  # to read, and as many to write
READ_AHEAD = 4  # photos; 150 MB at 12 megapixels each


def output_folder(wanted: Path | None, overwrite: bool, usual: Path) -> Path:
    """Create and return the output folder: `wanted`, or a new one named `usual`, `usual`-2 and so on.

    Raises:
        UsageError: `wanted` is a file, or has content and `overwrite` is not set.
    """
    if wanted is None:
        return _next_folder(usual)
    folder = wanted
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {printable(folder)}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{printable(folder)}: is not empty; choose another --output, or --overwrite")
    require_writable(folder, "--output")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _next_folder(usual: Path) -> Path:
    """Create a folder with an unused name. mkdir decides the race between commands that start at the same time."""
    require_writable(usual.parent, "--output")
    folder = usual
    for number in count(2):
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
        folder = usual.with_name(f"{usual.name}-{number}")
    return folder


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; work that has not started when the block ends is cancelled."""
    pool = ThreadPoolExecutor(min(MOST_THREADS, num_cores()))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def read_ahead(paths: Sequence[str], reduction: Reduction = whole) -> Generator[Callable[[], DecodedPhoto]]:
    """Read photos in order, a few in advance, in threads.

    Args:
        paths: of the photos.
        reduction: by how much they may be reduced.

    Yields:
        For each path a function that returns the photo, or raises ImageError.
    """
    with threads() as pool:
        waiting: deque[Future[DecodedPhoto]] = deque()
        for path in paths:
            waiting.append(pool.submit(read_reduced, path, reduction))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result
        for photo in waiting:
            yield photo.result


class Job:
    """Detection in all inputs, one after the other.

    Args:
        predictor: detects the objects.
        results: receives the detections of every batch.
        output: folder for pictures and videos.
        batch_size: photos, frames or tiles in one batch of the network.
        frames: maximum number of frames of a video or camera; None: all.
        pictures: whether to write pictures and videos.
        threads: of PyTorch; None leaves their number as it is.
    """

    def __init__(
        self,
        predictor: Predictor,
        results: Results,
        output: Path,
        batch_size: int,
        frames: int | None,
        pictures: bool,
        threads: Threads | None = None,
    ) -> None:
        self.predictor = predictor
        self.results = results
        self.output = output
        self.batch_size = batch_size
        self.frames = frames
        self.pictures = pictures
        self.threads = threads or Threads("all", measures=False)
        self.num_faults = 0
        self.is_ended = False
        self.video_names: set[str] = set()

    def detect_photos(self, photos: list[Input]) -> None:
        """Detect objects in photos, batch by batch; print errors of single photos and continue.

        While the network processes a batch, threads read the next photos and write the previous pictures.
        """
        images: dict[str, DecodedPhoto] = {}
        reduction = whole if self.pictures else self.predictor.reduction
        with (
            tqdm(total=len(photos), unit="photo", disable=None if photos else True) as bar,
            closing(read_ahead([photo.path for photo in photos], reduction)) as read,
            threads() as writers,
        ):
            written: dict[str, Future[None]] = {}
            for number, (photo, image) in enumerate(zip(photos, read, strict=True), start=1):
                with self.errors_printed():
                    images[photo.name] = image()
                if number == len(photos) or self.predictor.fills(list(images.values()), self.batch_size):
                    self.threads.follow()
                    found = self.predictor.detect(list(images.values()), self.batch_size)
                    self._finish(written)  # at most two batches are in memory
                    written = self._write(writers, images, found)
                    images = {}
                    bar.update(number - bar.n)
            self._finish(written)

    def _write(
        self, writers: ThreadPoolExecutor, images: dict[str, DecodedPhoto], found: list[Detections]
    ) -> dict[str, Future[None]]:
        """Write the results of a batch, start writing its pictures, and return these tasks by name."""
        pairs = list(zip(images.items(), found, strict=True))
        self.results.add(
            [FrameDetections(name, None, image.width, image.height, detections) for (name, image), detections in pairs]
        )
        if not self.pictures:
            return {}
        return {name: writers.submit(self._write_picture, name, image.pixels, found) for (name, image), found in pairs}

    def _write_picture(self, name: str, image: np.ndarray, detections: Detections) -> None:
        write_picture(self.output / "pictures" / name, self.drawn(image, detections))

    def _finish(self, written: dict[str, Future[None]]) -> None:
        """Wait until pictures are written."""
        for picture in written.values():
            with self.errors_printed():
                picture.result()

    def detect_video(self, source: Input) -> None:
        """Detect objects in a video or camera, and write the frames with boxes as a video. Ctrl-C ends a camera."""
        with self.errors_printed(), Video(source.path) as video:
            total = min(filter(None, (self.frames, video.total)), default=None)
            before = self.results.num_inputs
            try:
                self._frames(source.name, video, total)
            except KeyboardInterrupt:
                if not video.is_camera:
                    raise
            done = self.results.num_inputs - before
            if not done:
                raise ImageError(f"{printable(source.path)}: no frame could be decoded")
            if total and done < 0.9 * total:  # the file's frame count is an estimate
                raise ImageError(f"{printable(source.path)}: {done} of about {total} frames could be decoded")
            if video.num_lost:
                raise ImageError(f"{printable(source.path)}: {video.num_lost} frames could not be decoded; {done} others could")

    def _frames(self, name: str, video: Video, total: int | None) -> None:
        stream = islice(video, self.frames)
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=total, unit="frame", desc=name, disable=None))
            writer, is_first = None, True
            while batch := list(islice(stream, 1 if video.is_camera else self.batch_size)):
                numbers, images = zip(*batch, strict=True)
                self.threads.follow()
                found = self.predictor.detect(images, self.batch_size)
                if is_first and self.pictures:
                    with self.errors_printed():  # detection continues without the video
                        writer = stack.enter_context(self._video_file(name, video, images[0]))
                entries = []
                for number, image, detections in zip(numbers, images, found, strict=True):
                    entries.append(FrameDetections(name, number, image.shape[1], image.shape[0], detections))
                    if writer is not None:
                        writer.write(self.drawn(image, detections))
                self.results.add(entries)
                is_first = False
                bar.update(len(batch))

    def _video_file(self, name: str, video: Video, first: np.ndarray) -> VideoFile:
        """Return the file for a video's frames, with the size of its first frame and, if possible, its rate."""
        rate = writable_rate(video.rate)
        if not rate and not video.is_camera:
            tqdm.write(
                f"note: {printable(video.source)}: unusable rate of {video.rate:g} frames/s; written at {DEFAULT_RATE:g}",
                file=sys.stderr,
            )
        path = self.output / "videos" / output_name(name, ".mp4", self.video_names)
        return VideoFile(path, rate or DEFAULT_RATE, first.shape[1], first.shape[0])

    def drawn(self, image: np.ndarray, detections: Detections) -> np.ndarray:
        return draw_boxes(image, detections.boxes, detections.labels, self.predictor.classes, detections.scores)

    @contextmanager
    def errors_printed(self) -> Iterator[None]:
        """Print and count an ImageError raised in the block."""
        try:
            yield
        except ImageError as error:
            self.num_faults += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
