"""Writes a trained network as a file that runs without this project, and checks it: python scripts/export.py CHECKPOINT

    python scripts/export.py runs/mine/checkpoints/best.pt --score 0.4
    python scripts/run_onnx.py runs/mine/checkpoints/best.onnx photo.jpg
    python scripts/export.py runs/mine/checkpoints/best.pt --format torch

    onnx    NAME.onnx, for onnxruntime and all that reads ONNX
    torch   NAME.pt2, for PyTorch: torch.export.load(FILE).module()(images); import torchvision before
    aoti    NAME.aoti.pt2, compiled by AOTInductor for this kind of processor: torch._inductor.aoti_load_package(FILE)(images),
            or from C++; takes a C++ compiler and a minute or two

The file holds everything from pixels to detections: image preparation, network, decoding and non-maximum suppression. It takes
`images` [B, H, W, 3] uint8 RGB of any size and gives `boxes` [B, K, 4] in pixels, `labels` [B, K] and `scores` [B, K]; places
without a detection have the label -1. Class names and thresholds stand in its metadata.

It is run at once on photos (by default those that the run was evaluated on) and compared with the checkpoint itself.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime
import torch

from data.annotation import DataError
from ssd.config import ConfigError
from ssd.config_file import parse_config
from ssd.deploy.export import INPUT, OUTPUTS, export_onnx, export_torch
from ssd.deploy.predictor import Detections, Predictor
from ssd.system.arguments import Parser, fraction, whole
from ssd.system.command import command
from ssd.system.errors import Failure, UsageError
from ssd.system.files import naming
from ssd.system.images import SUFFIXES, read_photo
from ssd.training.datasets import load_val_photos
from ssd.training.run import Run
from ssd.weights.checkpoint import TrainState, load_checkpoint

Program = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]  # [B, H, W, 3] → boxes, labels, scores

SUFFIXES_OF = {"onnx": ".onnx", "torch": ".pt2", "aoti": ".aoti.pt2"}
NUM_PHOTOS = 16
# Differences that rounding alone can make.
MAX_BOX_DIFFERENCE = 0.5  # pixels
MAX_SCORE_DIFFERENCE = 1e-3


@command()
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    output = options.output or options.checkpoint.with_suffix(SUFFIXES_OF[options.format])
    check_usage(options, output)
    thresholds = {"score_thresh": options.score, "nms_thresh": options.nms, "top_k": options.top_k}
    state = load_checkpoint(options.checkpoint)
    predictor = Predictor.from_state(state, options.device, "float32", **thresholds)
    photos = [read_photo(path) for path in find_photos(state, options.photos)]
    write = export_onnx if options.format == "onnx" else partial(export_torch, compiled=options.format == "aoti")
    with naming(output):
        write(output, predictor.model, predictor.preparation, predictor.classes, predictor.limits)
    run, metadata = load_program(output, options.format, predictor.device)
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB; classes: {', '.join(json.loads(metadata['classes']))}")
    check(run, predictor, photos)
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoints/best.pt of a run, or converted weights"
    )
    parser.add_argument("--format", choices=SUFFIXES_OF, default="onnx", help="what to write (onnx)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="by default beside the checkpoint, NAME.onnx and so on")
    parser.add_argument("--device", default="cpu", help="where a torch or aoti file shall run: cpu | cuda | cuda:N (cpu)")
    parser.add_argument("--score", type=fraction, default=0.3, metavar="S", help="least score of a detection (0.3)")
    parser.add_argument("--nms", type=fraction, default=0.45, metavar="O", help="most overlap of two boxes of a class (0.45)")
    parser.add_argument("--top-k", type=whole(1), default=200, metavar="K", help="most detections in a photo (200)")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="photos to check the file on")
    return parser.parse_args(arguments)


def check(run: Program, predictor: Predictor, photos: list[np.ndarray]) -> None:
    """Compares the file's detections with the checkpoint's, and says how far they lie apart.

    Raises:
        Failure: farther than rounding explains; or there are none to compare.
    """
    num_detections, box_difference, score_difference = compare(run, predictor, photos)
    print(
        f"checked on {len(photos)} photos with {num_detections} detections: boxes differ from the checkpoint's by at most "
        f"{box_difference:.3f} pixels, scores by {score_difference:.1e}"
    )
    if box_difference > MAX_BOX_DIFFERENCE or score_difference > MAX_SCORE_DIFFERENCE:
        raise Failure(f"more than {MAX_BOX_DIFFERENCE} pixels or {MAX_SCORE_DIFFERENCE}; do not use the file")
    if not num_detections:
        raise Failure(
            f"not checked: in {len(photos)} photos nothing is found from score {predictor.limits.score_thresh:g} on; "
            "lower --score, or name other --photos"
        )


def check_usage(options: argparse.Namespace, output: Path) -> None:
    """Looks at what can be wrong before anything is read.

    Raises:
        UsageError: the options do not go together, or what they need is missing.
    """
    suffix = ".onnx" if options.format == "onnx" else ".pt2"
    if output.suffix != suffix:
        raise UsageError(f"--output {output}: a file of format {options.format} has to end in {suffix}")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: no such folder")
    if options.format == "onnx" and options.device != "cpu":
        raise UsageError("--device is for torch and aoti files; an ONNX file runs on any device")
    if options.format == "aoti" and not shutil.which(os.environ.get("CXX", "g++")):
        raise UsageError("--format aoti needs a C++ compiler; install g++, or name another one in CXX")


def load_program(path: Path, kind: str, device: torch.device) -> tuple[Program, dict[str, str]]:
    """What a user of the file would run, and the metadata in it."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: session.run(list(OUTPUTS), {INPUT: images}), session.get_modelmeta().custom_metadata_map  # pyright: ignore
    if kind == "torch":
        extra = {"metadata.json": ""}
        program = torch.export.load(path, extra_files=extra).module()
        metadata = json.loads(extra["metadata.json"])
    else:
        program = torch._inductor.aoti_load_package(str(path))
        metadata = program.get_metadata()

    @torch.no_grad()
    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes, labels, scores = (values.cpu().numpy() for values in program(torch.from_numpy(images).to(device)))
        return boxes, labels, scores

    return run, metadata


def find_photos(state: TrainState, folder: Path | None) -> list[Path]:
    """Photos to check on: some of a folder, or of those that the checkpoint's run was evaluated on.

    Raises:
        UsageError: there are none.
    """
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise UsageError(f"{folder}: holds no photos ({', '.join(SUFFIXES)})")
    else:
        try:
            config = parse_config(state.config)
            photos = load_val_photos(Run.alone(config))
        except (ConfigError, DataError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"the run's photos are not to be had ({reason}); name a folder with --photos") from None
        paths = [Path(photos.path(index)) for index in range(len(photos))]
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, NUM_PHOTOS).astype(int))]


def compare(run: Program, predictor: Predictor, photos: list[np.ndarray]) -> tuple[int, float, float]:
    """The number of detections, and how far those of the file lie from the checkpoint's: boxes in pixels, scores.

    A detection that the other side has no like of counts as infinitely far, unless its score is at the threshold itself.
    """
    total, box_difference, score_difference = 0, 0.0, 0.0
    for photo in photos:
        boxes, labels, scores = (values[0] for values in run(photo[None]))
        is_detection = labels >= 0
        theirs = Detections(boxes[is_detection], labels[is_detection], scores[is_detection], [])
        (ours,) = predictor.detect([photo])
        total += len(ours.labels)
        for one, other in ((ours, theirs), (theirs, ours)):
            sure = one.scores > predictor.limits.score_thresh + MAX_SCORE_DIFFERENCE
            apart = np.abs(one.boxes[sure, None] - other.boxes).max(axis=2, initial=0)  # [n, m]
            apart[one.labels[sure, None] != other.labels] = np.inf
            apart = np.concatenate([apart, np.full((len(apart), 1), np.inf)], axis=1)
            nearest = apart.argmin(axis=1)
            box_difference = max(box_difference, apart.min(axis=1).max(initial=0))
            score_difference = max(
                score_difference, np.abs(np.append(other.scores, np.inf)[nearest] - one.scores[sure]).max(initial=0)
            )
    return total, box_difference, score_difference


if __name__ == "__main__":
    sys.exit(main())
