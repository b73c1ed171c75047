"""Finds objects in photos and videos: python scripts/detect.py CHECKPOINT INPUT...

    python scripts/detect.py runs/mine/checkpoints/best.pt photos/ --score 0.4
    python scripts/detect.py runs/mine/checkpoints/best.pt "holiday/*.jpg" clip.mp4 --formats json,csv
    python scripts/detect.py runs/mine/checkpoints/best.pt camera:0 --frames 300

An INPUT is a photo, a folder (with all below it), a pattern in quotes, a video, or a camera. Pictures and videos with labelled
boxes go to the output folder, and beside them what was found, as

    json    detections.json: an entry a photo or frame, boxes x1, y1, x2, y2 in pixels counted from 0
    csv     detections.csv: a line a detection
    voc     Annotations/NAME.xml, as training takes it (photos only)
    coco    coco.json: images, categories and annotations with their scores
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from glob import glob
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from tqdm import tqdm

from ssd.boxes import edges_to_voc
from ssd.config import ConfigError
from ssd.deploy.predictor import Detections, Predictor
from ssd.evaluation.pictures import draw_boxes
from ssd.system.errors import UsageError
from ssd.system.images import SUFFIXES, ImageError, read_photo
from ssd.weights.checkpoint import CheckpointError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
CAMERA = "camera:"
FORMATS = ("json", "csv", "voc", "coco")
DEFAULT_RATE = 25.0  # frames a second, of a camera or a video that does not say


class Found(NamedTuple):
    """What was found in one photo or frame."""

    name: str  # path of the photo within its folder, or the video's name
    frame: int | None  # of a video, from 0
    width: int
    height: int
    detections: Detections


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        unknown = set(options.formats) - set(FORMATS)
        if unknown:
            raise UsageError(f"--formats {', '.join(sorted(unknown))}: known are {', '.join(FORMATS)}")
        photos, videos = find_inputs(options.inputs)
        predictor = Predictor.from_checkpoint(
            options.checkpoint, options.device, score_thresh=options.score, nms_thresh=options.nms
        )
        output = output_folder(options.output, options.overwrite)
        found, faults = list_all(detect_photos(predictor, photos, output, options))
        for video in videos:
            found += detect_video(predictor, video, output, options)
    except (CheckpointError, ConfigError, UsageError, ImageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    write_results(found, predictor.classes, output, options.formats)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    total = sum(len(entry.detections.labels) for entry in found)
    print(f"{total} objects in {len(found)} {'frames and photos' if videos else 'photos'}; written to {output}")
    return 2 if faults else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoints/best.pt of a run, or converted weights")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photo, folder, pattern in quotes, video, or camera:N")
    parser.add_argument("--score", type=fraction, default=0.5, metavar="S", help="least score of a detection (0.5)")
    parser.add_argument("--nms", type=fraction, default=0.45, metavar="O", help="most overlap of two boxes of a class (0.45)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="by default runs/detect, or runs/detect-2 and so on")
    parser.add_argument("--overwrite", action="store_true", help="write into an --output folder that is not empty")
    parser.add_argument(
        "--formats", type=lambda text: text.split(","), default=["json"], metavar="F,...", help=", ".join(FORMATS)
    )
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures and no videos")
    parser.add_argument("--frames", type=int, metavar="N", help="end a video or a camera after so many frames")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="photos that go through the network at once")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    return parser.parse_args(arguments)


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def find_inputs(inputs: Iterable[str]) -> tuple[dict[str, Path], list[str]]:
    """Photos by the names under which their results go, and videos and cameras.

    Raises:
        UsageError: an input is not there, holds no photo, or is of no known kind.
    """
    photos: dict[str, Path] = {}
    videos: list[str] = []

    def add(path: Path, base: Path) -> None:
        name = path.relative_to(base).as_posix()
        if photos.get(name, path) != path:
            name = (Path(path.parent.name) / path.name).as_posix()
        if photos.setdefault(name, path) != path:
            raise UsageError(f"{path}: {photos[name]} has the same name; detect them one after the other")

    for text in inputs:
        path = Path(text)
        if "://" in text:
            raise UsageError(f"{text}: addresses are not fetched; download the file and name it")
        if text.startswith(CAMERA):
            videos.append(text)
        elif path.is_dir():
            inside = sorted(entry for entry in path.rglob("*") if entry.suffix.lower() in SUFFIXES and entry.is_file())
            if not inside:
                raise UsageError(f"{path}: holds no photos ({', '.join(SUFFIXES)})")
            for entry in inside:
                add(entry, path)
        else:
            matches = [path] if path.exists() else [Path(match) for match in sorted(glob(text, recursive=True))]
            if not matches:
                raise UsageError(f"{text}: no such file" + (", and no file fits the pattern" if set(text) & set("*?[") else ""))
            for match in matches:
                suffix = match.suffix.lower()
                if suffix in VIDEO_SUFFIXES:
                    videos.append(str(match))
                elif suffix in SUFFIXES:
                    add(match, match.parent)
                elif len(matches) == 1:
                    raise UsageError(
                        f"{match}: is neither a photo ({', '.join(SUFFIXES)}) nor a video ({', '.join(VIDEO_SUFFIXES)})"
                    )
    return photos, videos


def output_folder(wanted: Path | None, overwrite: bool) -> Path:
    """The folder to write to, made; never one with other results in it, unless it is to be overwritten."""
    folder = wanted or Path("runs/detect")
    number = 1
    while wanted is None and folder.exists():
        number += 1
        folder = Path(f"runs/detect-{number}")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{folder}: is not empty; choose another --output, or --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def list_all(results: Iterable[Found | ImageError]) -> tuple[list[Found], list[ImageError]]:
    """What was found, and what could not be read. Ctrl-C ends it, with what is done kept."""
    found, faults = [], []
    try:
        for result in results:
            (faults if isinstance(result, ImageError) else found).append(result)
    except KeyboardInterrupt:
        print(f"ended after {len(found)} photos", file=sys.stderr)
    return found, faults


def detect_photos(
    predictor: Predictor, photos: dict[str, Path], output: Path, options: argparse.Namespace
) -> Iterator[Found | ImageError]:
    """Detects photos batch by batch; one that cannot be read is told and does not stop the others."""
    names = list(photos)
    with tqdm(total=len(names), unit="photo", disable=None if names else True) as bar:
        for start in range(0, len(names), options.batch_size):
            pixels: dict[str, np.ndarray] = {}
            for name in names[start : start + options.batch_size]:
                try:
                    pixels[name] = read_photo(photos[name])
                except ImageError as error:
                    yield error
            for (name, image), detections in zip(pixels.items(), predictor.detect(list(pixels.values())), strict=True):
                if not options.no_pictures:
                    write_picture(output / "pictures" / name, drawn(image, detections, predictor.classes))
                yield Found(name, None, image.shape[1], image.shape[0], detections)
            bar.update(min(options.batch_size, len(names) - start))


def detect_video(predictor: Predictor, source: str, output: Path, options: argparse.Namespace) -> list[Found]:
    """Detects the frames of a video or camera, and writes them as a video again. Ctrl-C ends it, with what is done kept."""
    is_camera = source.startswith(CAMERA)
    name = source.replace(":", "-") + ".mp4" if is_camera else Path(source).name
    frames = cv2.VideoCapture(camera_number(source)) if is_camera else cv2.VideoCapture(source)
    found: list[Found] = []
    with ExitStack() as stack:
        stack.callback(frames.release)
        if not frames.isOpened():
            raise ImageError(f"{source}: cannot be opened as a {'camera' if is_camera else 'video'}")
        rate = frames.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE
        total = options.frames or max(int(frames.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
        bar = stack.enter_context(tqdm(total=total, unit="frame", desc=name, disable=None))
        writer = None
        batch_size = 1 if is_camera else options.batch_size
        stream = islice(read_frames(frames), options.frames)
        try:
            while batch := list(islice(stream, batch_size)):
                for image, detections in zip(batch, predictor.detect(batch), strict=True):
                    height, width = image.shape[:2]
                    if writer is None and not options.no_pictures:
                        path = output / "videos" / Path(name).with_suffix(".mp4").name
                        writer = stack.enter_context(VideoFile(path, rate, width, height))
                    if writer is not None:
                        writer.write(drawn(image, detections, predictor.classes))
                    found.append(Found(name, len(found), width, height, detections))
                    bar.update()
        except KeyboardInterrupt:
            print(f"{source}: ended after {len(found)} frames", file=sys.stderr)
    if not found:
        raise ImageError(f"{source}: has no frame that can be decoded")
    return found


def camera_number(source: str) -> int:
    number = source.removeprefix(CAMERA)
    if not number.isdigit():
        raise UsageError(f"{source}: expected a number, such as camera:0")
    return int(number)


def read_frames(frames: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Frames `[H, W, 3]` RGB, to the end or to the first that cannot be decoded."""
    while True:
        is_read, frame = frames.read()
        if not is_read:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class VideoFile:
    """A video that is written frame by frame."""

    def __init__(self, path: Path, rate: float, width: int, height: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
        if not self.writer.isOpened():
            raise UsageError(f"{path}: this OpenCV cannot write videos; use --no-pictures")

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.release()

    def write(self, image: np.ndarray) -> None:
        """One frame `[H, W, 3]` RGB."""
        self.writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def drawn(image: np.ndarray, detections: Detections, classes: tuple[str, ...]) -> np.ndarray:
    return draw_boxes(image, detections.boxes, detections.labels, classes, detections.scores)


def write_picture(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(5, "cannot be written", str(path))


def write_results(found: list[Found], classes: tuple[str, ...], output: Path, formats: list[str]) -> None:
    """What was found, in each of the formats."""
    if "json" in formats:
        lines = ",\n".join(json.dumps(as_json(entry)) for entry in found)
        (output / "detections.json").write_text(f"[\n{lines}\n]\n")
    if "csv" in formats:
        with open(output / "detections.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "frame", "class", "score", "x1", "y1", "x2", "y2"])
            for entry in found:
                for box, score, name in zip(
                    entry.detections.boxes, entry.detections.scores, entry.detections.names, strict=True
                ):
                    frame = "" if entry.frame is None else entry.frame
                    writer.writerow([entry.name, frame, name, f"{score:.4f}", *(f"{value:.1f}" for value in box)])
    if "voc" in formats:
        for entry in found:
            if entry.frame is None:
                write_voc(output / "Annotations" / Path(entry.name).with_suffix(".xml"), entry)
    if "coco" in formats:
        (output / "coco.json").write_text(json.dumps(as_coco(found, classes)))


def objects(entry: Found) -> Iterator[tuple[np.ndarray, float, str]]:
    """Box, score and class name of each object."""
    detections = entry.detections
    return zip(detections.boxes, detections.scores.tolist(), detections.names, strict=True)


def as_json(entry: Found) -> dict[str, object]:
    listed = [
        {"class": name, "score": round(score, 4), "box": [round(float(value), 1) for value in box]}
        for box, score, name in objects(entry)
    ]
    frame = {} if entry.frame is None else {"frame": entry.frame}
    return {"name": entry.name, **frame, "width": entry.width, "height": entry.height, "objects": listed}


def write_voc(path: Path, entry: Found) -> None:
    """An annotation as VOC has them."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = Path(entry.name).name
    size = ElementTree.SubElement(root, "size")
    for side, value in (("width", entry.width), ("height", entry.height), ("depth", 3)):
        ElementTree.SubElement(size, side).text = str(value)
    for box, score, name in objects(entry):
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = name
        ElementTree.SubElement(item, "difficult").text = "0"
        ElementTree.SubElement(item, "score").text = f"{score:.4f}"
        bndbox = ElementTree.SubElement(item, "bndbox")
        corners = edges_to_voc(box)
        corners[2:] = np.maximum(corners[2:], corners[:2])  # what is less than a pixel wide would look inverted
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ElementTree.SubElement(bndbox, side).text = f"{value:.1f}"
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8")


def as_coco(found: list[Found], classes: tuple[str, ...]) -> dict[str, object]:
    """COCO's layout: boxes as left, top, width, height; categories count from 1."""
    images, annotations = [], []
    for image_id, entry in enumerate(found, start=1):
        file_name = entry.name if entry.frame is None else f"{entry.name}#{entry.frame}"
        images.append({"id": image_id, "file_name": file_name, "width": entry.width, "height": entry.height})
        for (x1, y1, x2, y2), score, name in objects(entry):
            box = [round(float(value), 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": classes.index(name) + 1, "bbox": box,
                    "area": round(box[2] * box[3], 2), "iscrowd": 0, "score": round(score, 4),
                }
            )  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


if __name__ == "__main__":
    sys.exit(main())
