"""The detection of many inputs, one after the other, into an output folder."""

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
from ssd.evaluation.pictures import draw_boxes
from ssd.inference.predict import Detections
from ssd.inference.predictor import Predictor
from ssd.system.errors import UsageError
from ssd.system.files import require_writable
from ssd.system.images import ImageError, printable, read_photo, write_picture
from ssd.system.machine import num_cores

MOST_THREADS = 4  # that read, and as many that write
READ_AHEAD = 4  # photos: of 12 megapixels, 150 MB


def output_folder(wanted: Path | None, overwrite: bool, usual: Path) -> Path:
    """The folder to write to, made: the one that is wanted or the usual one, with a number behind it where that is taken; never
    one with anything else in it, unless it is to be overwritten."""
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
    """A folder of one's own, also where other commands look for one at the same time: to make it is to have it."""
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
    """Some threads. What they have not begun when the block ends is not done."""
    pool = ThreadPoolExecutor(min(MOST_THREADS, num_cores()))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def read_ahead(paths: Sequence[str]) -> Generator[Callable[[], np.ndarray]]:
    """Photos in their order, which threads read a few of in advance.

    Yields:
        for each path a function that gives the photo, `[H, W, 3]` uint8 RGB, or raises ImageError.
    """
    with threads() as pool:
        waiting: deque[Future[np.ndarray]] = deque()
        for path in paths:
            waiting.append(pool.submit(read_photo, path))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result
        for photo in waiting:
            yield photo.result


class Job:
    """The detection of all inputs, one after the other.

    Args:
        predictor: finds the objects.
        results: what is found goes there at once.
        output: the folder of pictures and videos.
        batch_size: photos or frames, or their tiles, that go through the network at once.
        frames: after which a video ends, if it is to.
        pictures: whether pictures and videos are written.
    """

    def __init__(
        self, predictor: Predictor, results: Results, output: Path, batch_size: int, frames: int | None, pictures: bool
    ) -> None:
        self.predictor = predictor
        self.results = results
        self.output = output
        self.batch_size = batch_size
        self.frames = frames
        self.pictures = pictures
        self.num_faults = 0
        self.is_ended = False
        self.video_names: set[str] = set()

    def detect_photos(self, photos: list[Input]) -> None:
        """Photos batch by batch; an error of one is printed, and does not stop the others.

        While the network looks at some of them, threads read the next and write the pictures of the last.
        """
        images: dict[str, np.ndarray] = {}
        with (
            tqdm(total=len(photos), unit="photo", disable=None if photos else True) as bar,
            closing(read_ahead([photo.path for photo in photos])) as read,
            threads() as writers,
        ):
            written: dict[str, Future[None]] = {}
            for number, (photo, image) in enumerate(zip(photos, read, strict=True), start=1):
                with self.errors_printed():
                    images[photo.name] = image()
                if number == len(photos) or self.predictor.fills(list(images.values()), self.batch_size):
                    found = self.predictor.detect(list(images.values()), self.batch_size)
                    self._finish(written)  # no more than two batches are in memory
                    written = self._write(writers, images, found)
                    images = {}
                    bar.update(number - bar.n)
            self._finish(written)

    def _write(
        self, writers: ThreadPoolExecutor, images: dict[str, np.ndarray], found: list[Detections]
    ) -> dict[str, Future[None]]:
        """Writes results, and begins to write pictures, of photos by the names of their results."""
        pairs = list(zip(images.items(), found, strict=True))
        self.results.add(
            [FrameDetections(name, None, image.shape[1], image.shape[0], detections) for (name, image), detections in pairs]
        )
        if not self.pictures:
            return {}
        return {name: writers.submit(self._write_picture, name, image, detections) for (name, image), detections in pairs}

    def _write_picture(self, name: str, image: np.ndarray, detections: Detections) -> None:
        write_picture(self.output / "pictures" / name, self.drawn(image, detections))

    def _finish(self, written: dict[str, Future[None]]) -> None:
        """Waits for pictures."""
        for picture in written.values():
            with self.errors_printed():
                picture.result()

    def detect_video(self, source: Input) -> None:
        """The frames of a video or camera, which are written as a video again; Ctrl-C is the way to end a camera."""
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
                raise ImageError(f"{printable(source.path)}: has no frame that can be decoded")
            if total and done < 0.9 * total:  # the number in the file is an estimate
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
                found = self.predictor.detect(images, self.batch_size)
                if is_first and self.pictures:
                    with self.errors_printed():  # the frames are looked at all the same
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
        """The file for a video's frames, of the size of the first, at the speed of the video."""
        rate = writable_rate(video.rate)
        if not rate and not video.is_camera:
            tqdm.write(
                f"note: {printable(video.source)}: is said to have {video.rate:g} frames/s; written at {DEFAULT_RATE:g}",
                file=sys.stderr,
            )
        path = self.output / "videos" / output_name(name, ".mp4", self.video_names)
        return VideoFile(path, rate or DEFAULT_RATE, first.shape[1], first.shape[0])

    def drawn(self, image: np.ndarray, detections: Detections) -> np.ndarray:
        return draw_boxes(image, detections.boxes, detections.labels, self.predictor.classes, detections.scores)

    @contextmanager
    def errors_printed(self) -> Iterator[None]:
        """An input that cannot be read within the block is named on stderr at once, and counted."""
        try:
            yield
        except ImageError as error:
            self.num_faults += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
