"""Finds objects in photos and videos: python scripts/detect.py CHECKPOINT INPUT...

    python scripts/detect.py runs/mine/checkpoints/best.pt photos/ --score 0.4
    python scripts/detect.py runs/mine/checkpoints/best.pt "holiday/*.jpg" clip.mp4 --formats json,csv
    python scripts/detect.py runs/mine/checkpoints/best.pt camera:0 --frames 300

An INPUT is a photo, a video, a folder (with all photos and videos below it), a pattern in quotes, or a camera. Pictures and
videos with labelled boxes go to the output folder, and beside them what was found, as

    json    detections.json: an entry a photo or frame, boxes x1, y1, x2, y2 in pixels counted from 0
    csv     detections.csv: a line a detection
    voc     Annotations/NAME.xml, as training takes it (photos only)
    coco    coco.json: images, categories and annotations with their scores

Results are written as they come. What cannot be read is told and left out; the exit code is 2 then. Inputs of one name get the
names of their folders before it; in names that are not UTF-8 the bytes are written as \\xe9.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm import tqdm

from ssd.deploy.inputs import Input, find_inputs, output_name
from ssd.deploy.predictor import Detections, Predictor
from ssd.deploy.results import FORMATS, Found, Results
from ssd.deploy.video import Video, VideoFile
from ssd.evaluation.pictures import draw_boxes
from ssd.system.arguments import Parser, fraction, names_of, whole
from ssd.system.command import command
from ssd.system.errors import UsageError
from ssd.system.images import ImageError, printable, read_photo, write_picture


@command()
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    inputs = find_inputs(options.inputs)
    predictor = Predictor.from_checkpoint(
        options.checkpoint, options.device, score_thresh=options.score, nms_thresh=options.nms
    )
    output = output_folder(options.output, options.overwrite)
    with Results(output, options.formats, predictor.classes) as results, sigterm_as_interrupt():
        job = Job(predictor, results, output, options)
        try:
            job.at_photos(inputs.photos)
            for video in inputs.videos:
                job.at_video(video)
        except KeyboardInterrupt:
            job.is_ended = True
    kind = "frames and photos" if inputs.videos else "photos"
    print(f"{results.num_objects} objects in {results.num_inputs} {kind}; written to {printable(output)}")
    if job.is_ended:
        print("ended before all was done", file=sys.stderr)
        return 130
    return 2 if job.num_faults else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoints/best.pt of a run, or converted weights")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photo, folder, pattern in quotes, video, or camera:N")
    parser.add_argument("--score", type=fraction, default=0.5, metavar="S", help="least score of a detection (0.5)")
    parser.add_argument("--nms", type=fraction, default=0.45, metavar="O", help="most overlap of two boxes of a class (0.45)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="by default runs/detect, or runs/detect-2 and so on")
    parser.add_argument("--overwrite", action="store_true", help="write into an --output folder that is not empty")
    parser.add_argument("--formats", type=names_of(FORMATS), default=["json"], metavar="F,...", help=", ".join(FORMATS))
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures and no videos")
    parser.add_argument("--frames", type=whole(1), metavar="N", help="end a video or a camera after so many frames")
    parser.add_argument(
        "--batch-size", type=whole(1), default=16, metavar="N", help="photos that go through the network at once (16)"
    )
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    return parser.parse_args(arguments)


def output_folder(wanted: Path | None, overwrite: bool) -> Path:
    """The folder to write to, made; never one with other results in it, unless it is to be overwritten."""
    folder = wanted or Path("runs/detect")
    number = 1
    while wanted is None and folder.exists():
        number += 1
        folder = Path(f"runs/detect-{number}")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {printable(folder)}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{printable(folder)}: is not empty; choose another --output, or --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, with what is done kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Job:
    """The detection of all inputs, one after the other.

    Args:
        predictor: finds the objects.
        results: what is found goes there at once.
        output: the folder of pictures and videos.
        options: of the command.
    """

    def __init__(self, predictor: Predictor, results: Results, output: Path, options: argparse.Namespace) -> None:
        self.predictor = predictor
        self.results = results
        self.output = output
        self.options = options
        self.num_faults = 0
        self.is_ended = False
        self.video_names: set[str] = set()

    def at_photos(self, photos: list[Input]) -> None:
        """Photos batch by batch; one that cannot be read is told and does not stop the others."""
        size = self.options.batch_size
        with tqdm(total=len(photos), unit="photo", disable=None if photos else True) as bar:
            for start in range(0, len(photos), size):
                batch = photos[start : start + size]
                images = {}
                for photo in batch:
                    with self.told():
                        images[photo.name] = read_photo(photo.path)
                found = self.predictor.detect(list(images.values()))
                if not self.options.no_pictures:
                    for (name, image), detections in zip(images.items(), found, strict=True):
                        with self.told():
                            write_picture(self.output / "pictures" / name, self.drawn(image, detections))
                self.results.add(
                    [
                        Found(name, None, image.shape[1], image.shape[0], detections)
                        for (name, image), detections in zip(images.items(), found, strict=True)
                    ]
                )
                bar.update(len(batch))

    def at_video(self, source: Input) -> None:
        """The frames of a video or camera, which are written as a video again; Ctrl-C is the way to end a camera."""
        with self.told(), Video(source.path) as video:
            total = min(filter(None, (self.options.frames, video.total)), default=None)
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

    def _frames(self, name: str, video: Video, total: int | None) -> None:
        done = 0
        stream = islice(video, self.options.frames)
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=total, unit="frame", desc=name, disable=None))
            writer = None
            while batch := list(islice(stream, 1 if video.is_camera else self.options.batch_size)):
                found = self.predictor.detect(batch)
                if writer is None and not self.options.no_pictures:
                    path = self.output / "videos" / output_name(name, ".mp4", self.video_names)
                    writer = stack.enter_context(VideoFile(path, video.rate, batch[0].shape[1], batch[0].shape[0]))
                entries = []
                for number, (image, detections) in enumerate(zip(batch, found, strict=True), start=done):
                    entries.append(Found(name, number, image.shape[1], image.shape[0], detections))
                    if writer is not None:
                        writer.write(self.drawn(image, detections))
                self.results.add(entries)
                done += len(batch)
                bar.update(len(batch))

    def drawn(self, image: np.ndarray, detections: Detections) -> np.ndarray:
        return draw_boxes(image, detections.boxes, detections.labels, self.predictor.classes, detections.scores)

    @contextmanager
    def told(self) -> Iterator[None]:
        """An input that cannot be read is told at once, and counted."""
        try:
            yield
        except ImageError as error:
            self.num_faults += 1
            tqdm.write(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
