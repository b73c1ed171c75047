"""Export a trained network to a file that runs without this project, and check it: python scripts/export.py CHECKPOINT

    python scripts/export.py runs/mine/checkpoints/best.pt --score 0.4
    python scripts/run_onnx.py runs/mine/checkpoints/best.onnx photo.jpg
    python scripts/export.py runs/mine/checkpoints/best.pt --int8
    python scripts/export.py runs/mine/checkpoints/best.pt --heads raw
    python scripts/export.py runs/mine/checkpoints/best.pt --format weights

    onnx    NAME.onnx, for onnxruntime, OpenVINO and anything else that reads ONNX
    weights NAME.weights.pt, for this project: scripts/detect.py, model.init_from. The checkpoint without the state for
            resuming, in half precision: a sixth of its size, or less

An ONNX file contains everything from pixels to detections: preprocessing, network, decoding and non-maximum suppression. It
takes `images` [B, H, W, 3] uint8 RGB of any size and returns `boxes` [B, K, 4] in pixels, `labels` [B, K] and `scores` [B, K];
unused places have the label -1. Class names and thresholds are in its metadata. The command runs the file on a blank photo, on
one object alone and on photos (by default the run's validation photos), and compares it with the checkpoint.

--int8 writes NAME.int8.onnx with 8-bit convolutions: a quarter of the size, and faster on most CPUs. It needs the run's photos:
training photos for calibration, and all validation photos to measure the loss of mAP. mAP before and after is printed and
stored in the file's metadata; if more than --max-loss is lost, no file is written.

--heads raw writes the network alone, with fixed shapes and without non-maximum suppression, for compilers of NPUs and for
OpenCV: NAME.raw.onnx takes `images` [N, 3, S, S] and returns `loc` [N, P, 4] and `conf` [N, P, C]. Beside it, NAME.raw.json has
the DBoxes, thresholds and preprocessing, and decode_heads.py turns photos into input and outputs into boxes with NumPy alone.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.system.arguments import Parser, add_overrides, fraction, fraction_or_auto, whole_number
from ssd.system.command import command
from ssd.system.errors import Failure, UsageError
from ssd.system.files import naming

if TYPE_CHECKING:
    from onnx import ModelProto

    from ssd.deploy.forms import Form
    from ssd.inference.predictor import Predictor
    from ssd.weights.checkpoint import TrainState

SUFFIXES_OF = {"onnx": ".onnx", "weights": ".weights.pt"}
RAW_OPTIONS = ("batch", "input", "conf")
NUM_PHOTOS = 16
NUM_CALIBRATION = 128  # training photos
MAX_LOSS = 0.01  # of mAP
LITTLE_LOSS = 0.003  # of mAP; above it, float32 heads are tried


@command()
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    kind = f"{'.raw' if options.heads else ''}{'.int8' if options.int8 else ''}{SUFFIXES_OF[options.format]}"
    output = options.output or options.checkpoint.with_suffix(kind)
    check_usage(options, output)
    if options.format == "weights":
        return write_weights(options.checkpoint, output)
    from ssd.deploy.forms import CompleteForm, RawForm
    from ssd.deploy.program import check
    from ssd.deploy.raw_heads import RawOptions
    from ssd.inference.predictor import Predictor, choose_tiles
    from ssd.system.images import read_photo
    from ssd.weights.checkpoint import load_checkpoint

    thresholds = {"score_thresh": options.score, "nms_thresh": options.nms, "top_k": options.top_k}
    state = load_checkpoint(options.checkpoint)
    predictor = Predictor.from_checkpoint(state, "cpu", "float32", tiles="none", **thresholds)
    tiles = choose_tiles("trained", state)
    if tiles:
        print(
            f"note: the network was trained on tiles of {tiles.size} pixels; the file and the numbers below use whole photos, "
            "like detect.py --tiles none: cut large photos into tiles yourself, and merge the detections"
        )
    given = {name: getattr(options, name) for name in RAW_OPTIONS if getattr(options, name) is not None}
    form = RawForm(predictor, RawOptions(**given)) if options.heads else CompleteForm(predictor)
    if options.int8:
        return write_int8(output, state, predictor, form, options)
    photos = [read_photo(path) for path in find_photos(state, options)]
    write(output, form, form.graph(), {}, state.classes)
    check(form.load(output), predictor, photos)
    return 0


def write_int8(output: Path, state: "TrainState", predictor: "Predictor", form: "Form", options: argparse.Namespace) -> int:
    """Write the INT8 network if its mAP on all validation photos is close to that of float32."""
    from tqdm import tqdm

    from ssd.config.file import parse_config
    from ssd.deploy.program import detections_of, sparse_photos
    from ssd.deploy.quantise import quantise
    from ssd.evaluation.metrics import METRICS, voc_entries
    from ssd.inference.pictures import evenly_spaced
    from ssd.training.datasets import eval_dataset, load_data
    from ssd.training.run import Run

    with photos_needed("--int8 needs the run's training and validation photos; give their folder as data.root=FOLDER"):
        run = Run.alone(parse_config(state.config, overrides=options.overrides))
        photos = load_data(run)
    train, val = (eval_dataset(run, part, predictor.preprocessing) for part in (photos.train, photos.val))
    metric, num_val = METRICS[run.config.eval.metric], len(photos.val)
    ground_truth = [photos.val.ground_truth(index) for index in range(num_val)]

    def measured(network: "ModelProto", kind: str) -> float:
        program = form.program(network, run.config.eval)
        found = detections_of(program, map(val.image, tqdm(range(num_val), kind, unit="photo", disable=None, leave=False)))
        mean_ap = metric.compute(voc_entries(found), ground_truth, len(state.classes)).mean_ap
        print(f"{kind}: {metric.title} {mean_ap:.4f} on {num_val} validation photos", flush=True)
        return mean_ap

    def quantised(with_heads: bool) -> "ModelProto":
        some = tqdm(evenly_spaced(len(photos.train), NUM_CALIBRATION), "calibrating", unit="photo", disable=None, leave=False)
        return quantise(network, (form.batch(train.image(index)) for index in some), with_heads)

    network = form.graph()
    before = measured(network, "float32")
    tried = {"int8": quantised(with_heads=True)}
    results = {"int8": measured(tried["int8"], "int8")}
    if not before - results["int8"] <= LITTLE_LOSS:
        kind = "int8, heads in float32"
        tried[kind] = quantised(with_heads=False)
        results[kind] = measured(tried[kind], kind)
    best = max(results, key=results.__getitem__)
    loss = before - results[best]
    max_loss = MAX_LOSS if options.max_loss is None else options.max_loss
    if not loss <= max_loss:
        raise Failure(f"int8 loses {100 * loss:.1f} points of mAP, more than {100 * max_loss:g}: not written; see --max-loss")
    summary = {"metric": metric.title, "float32": before, "int8": results[best], "photos": num_val}
    write(output, form, tried[best], {"int8": summary}, state.classes, f" ({best})")
    some = [val.image(index) for index in evenly_spaced(num_val, NUM_PHOTOS)]
    sparse = sparse_photos(predictor, some)
    counts = [len(entry.labels) for entry in detections_of(form.load(output), [*sparse.values(), *some])]
    names = [*sparse, f"{len(some)} photos"]
    totals = [*counts[: len(sparse)], sum(counts[len(sparse) :])]
    print(f"detections: {', '.join(f'{count} in {name}' for name, count in zip(names, totals, strict=True))}")
    return 0


def write(
    output: Path, form: "Form", graph: "ModelProto", notes: Mapping[str, object], classes: Sequence[str], kind: str = ""
) -> None:
    """Write an ONNX file and say what it is."""
    with naming(output):
        form.write(output, graph, notes)
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB{kind}; classes: {', '.join(classes)}")
    if about := form.describe(output, graph):
        print(about)


def write_weights(checkpoint: Path, output: Path) -> int:
    """Write the checkpoint's weights alone; there is nothing to compare, since nothing is converted."""
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
    parser.add_argument("--format", choices=SUFFIXES_OF, default="onnx", help="of the file (onnx)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: NAME.onnx and so on, beside the checkpoint")
    parser.add_argument(
        "--score", type=fraction_or_auto, default=0.3, metavar="S",
        help="minimum score of a detection (0.3); auto: the best one of each class",
    )  # fmt: skip
    parser.add_argument("--nms", type=fraction, default=0.45, metavar="O", help="maximum overlap of boxes of a class (0.45)")
    parser.add_argument("--top-k", type=whole_number(1), default=200, metavar="K", help="maximum detections in a photo (200)")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="photos to check the file on")
    parser.add_argument("--int8", action="store_true", help="write an ONNX file with 8-bit convolutions, for CPUs")
    parser.add_argument("--max-loss", type=fraction, metavar="L", help=f"maximum loss of mAP by --int8, in 0..1 ({MAX_LOSS})")
    parser.add_argument("--heads", choices=["raw"], help="raw: the network without non-maximum suppression, for NPUs")
    parser.add_argument("--batch", type=whole_number(1), metavar="N", help="photos in a batch of --heads raw (1)")
    parser.add_argument(
        "--input", choices=["float32", "uint8", "normalised"],
        help="of --heads raw: pixels in 0..255 as floats (default) or bytes, or floats that are normalised before",
    )  # fmt: skip
    parser.add_argument("--conf", choices=["scores", "logits"], help="output of --heads raw: after softmax (default) or before")
    add_overrides(parser, "data.root=/data, the folder of the run's photos")
    return parser.parse_intermixed_args(arguments)


def check_usage(options: argparse.Namespace, output: Path) -> None:
    """Check the options before anything is read.

    Raises:
        UsageError: the options do not go together, or the output cannot be written.
    """
    if options.int8 and (options.format != "onnx" or options.photos):
        other = f"--photos {options.photos}: mAP needs the run's own photos"
        raise UsageError(f"--int8 does not go with {other if options.photos else f'--format {options.format}: it writes ONNX'}")
    if options.max_loss is not None and not options.int8:
        raise UsageError("--max-loss needs --int8")
    if options.heads and options.format != "onnx":
        raise UsageError(f"--heads {options.heads} does not go with --format {options.format}: it writes ONNX")
    for name in RAW_OPTIONS if not options.heads else ():
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} needs --heads raw")
    suffix = f".{SUFFIXES_OF[options.format].rpartition('.')[-1]}"
    if output.suffix != suffix:
        raise UsageError(f"--output {output}: a file of format {options.format} must end in {suffix}")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: no such folder")
    if options.format == "weights" and output.resolve() == options.checkpoint.resolve():
        raise UsageError(f"--output {output}: is the checkpoint itself, which resuming needs; name another file")


def find_photos(state: "TrainState", options: argparse.Namespace) -> list[Path]:
    """Return photos to check on: from a folder, or the run's validation photos.

    Raises:
        UsageError: there are none.
    """
    from ssd.config.file import parse_config
    from ssd.inference.pictures import evenly_spaced
    from ssd.system.images import SUFFIXES
    from ssd.training.datasets import load_part
    from ssd.training.run import Run

    folder = options.photos
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise UsageError(f"{folder}: contains no photos ({', '.join(SUFFIXES)})")
    else:
        with photos_needed("name a folder with --photos, or give theirs as data.root=FOLDER"):
            photos = load_part(Run.alone(parse_config(state.config, overrides=options.overrides)), "val")
        paths = [Path(photos.path(index)) for index in range(len(photos))]
    return [paths[i] for i in evenly_spaced(len(paths), NUM_PHOTOS)]


@contextmanager
def photos_needed(hint: str) -> Iterator[None]:
    """Turn errors of reading a run's photos into a UsageError that ends in `hint`."""
    from data.dataset.errors import DataError
    from ssd.config import ConfigError

    try:
        yield
    except (ConfigError, DataError) as error:
        raise UsageError(f"the run's photos cannot be read ({str(error).splitlines()[0]}); {hint}") from None


if __name__ == "__main__":
    sys.exit(main())
