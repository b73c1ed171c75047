"""Writes a trained network as a file that runs without this project, and checks it: python scripts/export.py CHECKPOINT

    python scripts/export.py runs/mine/checkpoints/best.pt --score 0.4
    python scripts/run_onnx.py runs/mine/checkpoints/best.onnx photo.jpg
    python scripts/export.py runs/mine/checkpoints/best.pt --format torch
    python scripts/export.py runs/mine/checkpoints/best.pt --format weights

    onnx    NAME.onnx, for onnxruntime and all that reads ONNX
    torch   NAME.pt2, for PyTorch: torch.export.load(FILE).module()(images); import torchvision before
    aoti    NAME.aoti.pt2, compiled by AOTInductor for this kind of processor: torch._inductor.aoti_load_package(FILE)(images),
            or from C++; takes a C++ compiler and a minute or two
    weights NAME.weights.pt, for this project: scripts/detect.py, model.init_from. The checkpoint without what a resume takes,
            in half precision: a sixth of its size, or less

A file of the first three holds everything from pixels to detections: image preparation, network, decoding and non-maximum
suppression. It takes `images` [B, H, W, 3] uint8 RGB of any size and gives `boxes` [B, K, 4] in pixels, `labels` [B, K] and
`scores` [B, K]; places without a detection have the label -1. Class names and thresholds stand in its metadata. It is run at
once on photos (by default those that the run was evaluated on) and compared with the checkpoint itself.
"""

import argparse
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssd.system.arguments import Parser, fraction, whole
from ssd.system.command import command
from ssd.system.errors import UsageError
from ssd.system.files import naming

if TYPE_CHECKING:
    from ssd.weights.checkpoint import TrainState

SUFFIXES_OF = {"onnx": ".onnx", "torch": ".pt2", "aoti": ".aoti.pt2", "weights": ".weights.pt"}
NUM_PHOTOS = 16


@command()
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    output = options.output or options.checkpoint.with_suffix(SUFFIXES_OF[options.format])
    check_usage(options, output)
    if options.format == "weights":
        return write_weights(options.checkpoint, output)
    from ssd.deploy.export import export_onnx, export_torch
    from ssd.deploy.predictor import Predictor
    from ssd.deploy.program import check, load_program
    from ssd.system.images import read_photo
    from ssd.weights.checkpoint import load_checkpoint

    thresholds = {"score_thresh": options.score, "nms_thresh": options.nms, "top_k": options.top_k}
    state = load_checkpoint(options.checkpoint)
    predictor = Predictor.from_checkpoint(state, options.device, "float32", **thresholds)
    photos = [read_photo(path) for path in find_photos(state, options.photos)]
    write = export_onnx if options.format == "onnx" else partial(export_torch, compiled=options.format == "aoti")
    with naming(output):
        write(output, predictor.model, predictor.preparation, predictor.classes, predictor.limits)
    run, metadata = load_program(output, options.format, predictor.device)
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB; classes: {', '.join(json.loads(metadata['classes']))}")
    check(run, predictor, photos)
    return 0


def write_weights(checkpoint: Path, output: Path) -> int:
    """The checkpoint's weights alone; nothing is translated, so there is nothing to compare."""
    from ssd.weights.checkpoint import load_checkpoint, save_checkpoint, weights_alone

    state = load_checkpoint(checkpoint)
    save_checkpoint(output, weights_alone(state))
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB; classes: {', '.join(state.classes)}")
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


def check_usage(options: argparse.Namespace, output: Path) -> None:
    """Looks at what can be wrong before anything is read.

    Raises:
        UsageError: the options do not go together, or what they need is missing.
    """
    suffix = f".{SUFFIXES_OF[options.format].rpartition('.')[-1]}"
    if output.suffix != suffix:
        raise UsageError(f"--output {output}: a file of format {options.format} has to end in {suffix}")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: no such folder")
    if options.format in ("onnx", "weights") and options.device != "cpu":
        raise UsageError("--device is for torch and aoti files; an ONNX file runs on any device, and so do weights")
    if options.format == "weights" and output.resolve() == options.checkpoint.resolve():
        raise UsageError(f"--output {output}: is the checkpoint itself, which a resume needs; name another file")
    if options.format == "aoti" and not shutil.which(os.environ.get("CXX", "g++")):
        raise UsageError("--format aoti needs a C++ compiler; install g++, or name another one in CXX")


def find_photos(state: "TrainState", folder: Path | None) -> list[Path]:
    """Photos to check on: some of a folder, or of those that the checkpoint's run was evaluated on.

    Raises:
        UsageError: there are none.
    """
    from data.annotation import DataError
    from ssd.config import ConfigError
    from ssd.config_file import parse_config
    from ssd.evaluation.pictures import spread
    from ssd.system.images import SUFFIXES
    from ssd.training.datasets import load_val_photos
    from ssd.training.run import Run

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
            raise UsageError(f"the run's photos cannot be read ({reason}); name a folder with --photos") from None
        paths = [Path(photos.path(index)) for index in range(len(photos))]
    return [paths[i] for i in spread(len(paths), NUM_PHOTOS)]


if __name__ == "__main__":
    sys.exit(main())
