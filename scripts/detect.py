"""Detect objects in photos and videos: python scripts/detect.py [CHECKPOINT] INPUT...

    python scripts/detect.py photos/
    python scripts/detect.py runs/mine/checkpoints/best.pt photos/ --score 0.4
    python scripts/detect.py runs/mine/checkpoints/best.pt "holiday/*.jpg" clip.mp4 --formats json,csv
    python scripts/detect.py runs/mine/checkpoints/best.pt camera:0 --frames 300

Without a CHECKPOINT, the shipped network `half` finds the 20 classes of PASCAL VOC: people, animals, vehicles, furniture.

An INPUT is a photo, a video, a folder (searched recursively for photos and videos), a pattern in quotes, or a camera. The
output folder receives pictures and videos with labelled boxes, and the detections as

    json    detections.json: one entry per photo or frame, boxes x1, y1, x2, y2 in pixels counted from 0
    csv     detections.csv: one line per detection
    coco    coco.json: images, categories and annotations with their scores

and, of photos only, for training or to correct in a labelling tool, as

    voc     Annotations/NAME.xml
    yolo    labels/NAME.txt and data.yaml
    cvat    annotations.xml, to upload to a CVAT task as "CVAT 1.1"
    label-studio    label_studio.json: tasks with predictions
    labelme         labelme/NAME.json, to place beside the photos

Photos larger than the tiles of training (data.tiles) are processed as a whole and tile by tile; --tiles changes this. Results
are written as they arrive. Unreadable inputs are reported and skipped, and the exit code is then 2. Inputs with the same name
are told apart by their folders' names; bytes that are not UTF-8 are written as \\xe9.
"""

import argparse
import sys
from pathlib import Path

from ssd.config.schema import LEAST_TILE
from ssd.system.arguments import Parser, fraction, fraction_or_auto, names_of, whole_number
from ssd.system.command import command
from ssd.system.errors import UsageError

FORMATS = ("json", "csv", "voc", "coco", "yolo", "cvat", "label-studio", "labelme")


@command(less_memory="try a smaller --batch-size")
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    from ssd.deploy.detection import Job, output_folder
    from ssd.deploy.inputs import find_inputs, split_checkpoint
    from ssd.deploy.results import Results
    from ssd.inference.predictor import Predictor
    from ssd.system.device import keep_freed_memory
    from ssd.system.images import passed_over, printable
    from ssd.system.threads import Threads
    from ssd.weights.sources import checkpoint_file

    keep_freed_memory()
    checkpoint, words = split_checkpoint([word for word in (options.checkpoint, *options.inputs) if word is not None])
    if not words:
        what = "name photos after the checkpoint" if checkpoint_file(checkpoint).exists() else "no such file or folder"
        raise UsageError(f"{checkpoint}: {what}")
    inputs = find_inputs(words)
    if passed_over(inputs.unread):
        print(f"note: {passed_over(inputs.unread)}", file=sys.stderr)
    predictor = Predictor.from_checkpoint(
        checkpoint, options.device, score_thresh=options.score, nms_thresh=options.nms, tiles=options.tiles,
        compile=options.compile,
    )  # fmt: skip
    output = output_folder(options.output, options.overwrite, Path("runs/detect"))
    with (
        Results(output, options.formats, predictor.classes) as results,
        Threads("free", measures=predictor.device.type == "cpu" and not options.compile) as threads,
    ):
        job = Job(predictor, results, output, options.batch_size, options.frames, not options.no_pictures, threads)
        try:
            job.detect_photos(inputs.photos)
            for video in inputs.videos:
                job.detect_video(video)
        except KeyboardInterrupt:
            job.is_ended = True
    kind = "frames and photos" if inputs.videos else "photos"
    print(f"{results.num_objects} objects in {results.num_inputs} {kind}; written to {printable(output)}")
    if job.is_ended:
        print("interrupted; results are partial", file=sys.stderr)
        return 130  # `command` replaces it for other signals
    return 2 if job.num_faults else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="checkpoints/best.pt of a run, converted weights, or a shipped name (half)",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photo, folder, pattern in quotes, video, or camera:N")
    parser.add_argument(
        "--score",
        type=fraction_or_auto,
        metavar="S",
        help="minimum score of a detection (0.5), or auto: for each class the best on its validation photos",
    )
    parser.add_argument(
        "--nms", type=fraction, default=0.45, metavar="O", help="maximum overlap of two boxes of a class (0.45)"
    )
    parser.add_argument(
        "--tiles", type=tiles, default="trained", metavar="SIZE",
        help="cut photos with longer sides into tiles of SIZE pixels, or none (by default as in training)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="by default runs/detect, or runs/detect-2 and so on")
    parser.add_argument("--overwrite", action="store_true", help="write into an --output folder that is not empty")
    parser.add_argument("--formats", type=names_of(FORMATS), default=["json"], metavar="F,...", help=", ".join(FORMATS))
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures and no videos")
    parser.add_argument("--frames", type=whole_number(1), metavar="N", help="stop a video or a camera after N frames")
    parser.add_argument("--batch-size", type=whole_number(1), default=16, metavar="N", help="photos or tiles per batch (16)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile; compiling takes 10 to 20 seconds")
    parser.add_argument("--device", default="auto", help="auto | cpu | mps | cuda | cuda:N")
    return parser.parse_intermixed_args(arguments)


def tiles(text: str) -> str | int:
    """Return the argument `tiles` of `Predictor.from_checkpoint`."""
    if text in ("trained", "none"):
        return text
    if not text.isdecimal() or int(text) < LEAST_TILE:
        raise argparse.ArgumentTypeError(f"expected none or a whole number of at least {LEAST_TILE}, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
