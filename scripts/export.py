"""Writes a trained network as a file that runs without this project, and checks it: python scripts/export.py CHECKPOINT

    python scripts/export.py runs/mine/checkpoints/best.pt --score 0.4
    python scripts/run_onnx.py runs/mine/checkpoints/best.onnx photo.jpg
    python scripts/export.py runs/mine/checkpoints/best.pt --int8
    python scripts/export.py runs/mine/checkpoints/best.pt --format torch
    python scripts/export.py runs/mine/checkpoints/best.pt --format weights

    onnx    NAME.onnx, for onnxruntime and all that reads ONNX
    torch   NAME.pt2, for PyTorch: torch.export.load(FILE).module()(images); import torchvision before
    weights NAME.weights.pt, for this project: scripts/detect.py, model.init_from. The checkpoint without what a resume takes,
            in half precision: a sixth of its size, or less

A file of the first two holds everything from pixels to detections: image preparation, network, decoding and non-maximum
suppression. It takes `images` [B, H, W, 3] uint8 RGB of any size and gives `boxes` [B, K, 4] in pixels, `labels` [B, K] and
`scores` [B, K]; places without a detection have the label -1. Class names and thresholds stand in its metadata. It is run at
once on a blank photo, on one object alone and on photos (by default those that the run was evaluated on), and compared with
the checkpoint itself.

--int8 writes NAME.int8.onnx, whose convolutions work in 8-bit whole numbers: a quarter of the size, and faster on most
processors. It needs the run's photos: training photos to calibrate the numbers, and all validation photos to tell what they
cost. mAP before and after is printed and stands in the file's metadata; a file that costs more than --max-loss is not written.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.system.arguments import Parser, add_overrides, fraction, whole_number
from ssd.system.command import command
from ssd.system.errors import Failure, UsageError
from ssd.system.files import naming

if TYPE_CHECKING:
    from onnx import ModelProto

    from ssd.evaluation.voc_eval import VOCResult
    from ssd.inference.predictor import Predictor
    from ssd.training.run import Run
    from ssd.weights.checkpoint import TrainState

SUFFIXES_OF = {"onnx": ".onnx", "torch": ".pt2", "weights": ".weights.pt"}
INT8_SUFFIX = ".int8.onnx"
NUM_PHOTOS = 16
NUM_CALIBRATION = 128  # training photos that show how large the values of each map become
MAX_LOSS = 0.01  # of mAP, by the numbers of 8 bits
LITTLE_LOSS = 0.003  # up to which the heads are not tried in float32


@command()
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    output = options.output or options.checkpoint.with_suffix(INT8_SUFFIX if options.int8 else SUFFIXES_OF[options.format])
    check_usage(options, output)
    if options.format == "weights":
        return write_weights(options.checkpoint, output)
    from ssd.deploy.export import export_onnx, export_torch
    from ssd.deploy.program import check, load_program
    from ssd.inference.predictor import Predictor, choose_tiles
    from ssd.system.images import read_photo
    from ssd.weights.checkpoint import load_checkpoint

    thresholds = {"score_thresh": options.score, "nms_thresh": options.nms, "top_k": options.top_k}
    state = load_checkpoint(options.checkpoint)
    predictor = Predictor.from_checkpoint(state, options.device, "float32", tiles="none", **thresholds)
    tiles = choose_tiles("trained", state)
    if tiles:
        print(
            f"note: the network was trained on tiles of {tiles.size} pixels; the file sees a photo as a whole, as detect.py "
            "--tiles none does, and so do the figures below: cut large photos into tiles before it, and merge what it finds"
        )
    if options.int8:
        return write_int8(output, state, predictor, options)
    photos = [read_photo(path) for path in find_photos(state, options)]
    write = export_onnx if options.format == "onnx" else export_torch
    with naming(output):
        write(output, predictor.model, predictor.preprocessing, predictor.classes, predictor.limits)
    run, metadata = load_program(output, options.format, predictor.device)
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB; classes: {', '.join(json.loads(metadata['classes']))}")
    check(run, predictor, photos)
    return 0


def write_int8(output: Path, state: "TrainState", predictor: "Predictor", options: argparse.Namespace) -> int:
    """The network in 8-bit numbers, if it is nearly as good as in float32 on all validation photos."""
    from tqdm import tqdm

    from ssd.deploy.export import network_graph, save_onnx, with_detection
    from ssd.deploy.program import sparse_photos
    from ssd.deploy.quantise import detections_of, quantise
    from ssd.evaluation.evaluate import compute_metric, metric_name
    from ssd.evaluation.pictures import evenly_spaced
    from ssd.inference.predict import Thresholds
    from ssd.training.datasets import eval_dataset, load_data

    with photos_needed("--int8 takes the run's training and validation photos; data.root=FOLDER tells where they are now"):
        run = run_of(state, options.overrides)
        photos = load_data(run)
    train, val = (eval_dataset(run, part, predictor.preprocessing) for part in (photos.train, photos.val))
    evaluation, num_val = run.config.eval, len(photos.val)
    limits = Thresholds(evaluation.score_thresh, evaluation.nms_thresh, evaluation.top_k)
    ground_truth = [photos.val.ground_truth(index) for index in range(num_val)]

    def graded(network: "ModelProto", kind: str) -> "VOCResult":
        program = with_detection(network, state.classes, limits)
        found = detections_of(program, map(val.image, tqdm(range(num_val), kind, unit="photo", disable=None, leave=False)))
        result = compute_metric(found, ground_truth, len(state.classes), evaluation.metric)
        print(f"{kind}: {metric_name(result)} {result.mean_ap:.4f} on {num_val} validation photos", flush=True)
        return result

    def quantised(with_heads: bool) -> "ModelProto":
        some = tqdm(evenly_spaced(len(photos.train), NUM_CALIBRATION), "calibrating", unit="photo", disable=None, leave=False)
        return quantise(network, map(train.image, some), with_heads)

    network = network_graph(predictor.model, predictor.preprocessing)
    before = graded(network, "float32")
    tried = {"int8": quantised(with_heads=True)}
    results = {"int8": graded(tried["int8"], "int8")}
    if not before.mean_ap - results["int8"].mean_ap <= LITTLE_LOSS:
        kind = "int8, heads in float32"
        tried[kind] = quantised(with_heads=False)
        results[kind] = graded(tried[kind], kind)
    best = max(results, key=lambda kind: results[kind].mean_ap)
    loss = before.mean_ap - results[best].mean_ap
    max_loss = MAX_LOSS if options.max_loss is None else options.max_loss
    if not loss <= max_loss:
        raise Failure(f"int8 costs {100 * loss:.1f} points of mAP, more than {100 * max_loss:g}: not written; see --max-loss")
    told = {"metric": metric_name(before), "float32": before.mean_ap, "int8": results[best].mean_ap, "photos": num_val}
    program = with_detection(tried[best], state.classes, predictor.limits, {"int8": json.dumps(told)})
    with naming(output):
        save_onnx(output, program)
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB ({best}); classes: {', '.join(state.classes)}")
    some = [val.image(index) for index in evenly_spaced(num_val, NUM_PHOTOS)]
    sparse = sparse_photos(predictor, some)
    counts = [len(entry["labels"]) for entry in detections_of(program, [*sparse.values(), *some])]
    names = [*sparse, f"{len(some)} photos"]
    totals = [*counts[: len(sparse)], sum(counts[len(sparse) :])]
    print(f"detections: {', '.join(f'{count} in {name}' for name, count in zip(names, totals, strict=True))}")
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
    parser.add_argument("--device", default="cpu", help="where a torch file shall run: cpu | cuda | cuda:N (cpu)")
    parser.add_argument("--score", type=fraction, default=0.3, metavar="S", help="least score of a detection (0.3)")
    parser.add_argument("--nms", type=fraction, default=0.45, metavar="O", help="most overlap of two boxes of a class (0.45)")
    parser.add_argument("--top-k", type=whole_number(1), default=200, metavar="K", help="most detections in a photo (200)")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="photos to check the file on")
    parser.add_argument("--int8", action="store_true", help="8-bit numbers in an ONNX file, for processors")
    parser.add_argument(
        "--max-loss", type=fraction, metavar="L", help=f"most that --int8 may cost, of mAP in 0..1 ({MAX_LOSS})"
    )
    add_overrides(parser, "data.root=/data, where the run's photos are")
    return parser.parse_intermixed_args(arguments)


def check_usage(options: argparse.Namespace, output: Path) -> None:
    """Looks at what can be wrong before anything is read.

    Raises:
        UsageError: the options do not go together, or what they need is missing.
    """
    if options.int8 and (options.format != "onnx" or options.photos):
        other = f"--photos {options.photos}: its mAP is that of the run's own"
        raise UsageError(f"--int8 does not go with {other if options.photos else f'--format {options.format}: it is ONNX'}")
    if options.max_loss is not None and not options.int8:
        raise UsageError("--max-loss is for --int8")
    suffix = f".{SUFFIXES_OF[options.format].rpartition('.')[-1]}"
    if output.suffix != suffix:
        raise UsageError(f"--output {output}: a file of format {options.format} has to end in {suffix}")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: no such folder")
    if options.format in ("onnx", "weights") and options.device != "cpu":
        raise UsageError("--device is for torch files; an ONNX file runs on any device, and so do weights")
    if options.format == "weights" and output.resolve() == options.checkpoint.resolve():
        raise UsageError(f"--output {output}: is the checkpoint itself, which a resume needs; name another file")


def find_photos(state: "TrainState", options: argparse.Namespace) -> list[Path]:
    """Photos to check on: some of a folder, or of those that the checkpoint's run was evaluated on.

    Raises:
        UsageError: there are none.
    """
    from ssd.evaluation.pictures import evenly_spaced
    from ssd.system.images import SUFFIXES
    from ssd.training.datasets import load_part

    folder = options.photos
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise UsageError(f"{folder}: holds no photos ({', '.join(SUFFIXES)})")
    else:
        with photos_needed("name a folder with --photos, or where they are now with data.root=FOLDER"):
            photos = load_part(run_of(state, options.overrides), "val")
        paths = [Path(photos.path(index)) for index in range(len(photos))]
    return [paths[i] for i in evenly_spaced(len(paths), NUM_PHOTOS)]


def run_of(state: "TrainState", overrides: Sequence[str]) -> "Run":
    """The run that a checkpoint is of, to look at its photos.

    Raises:
        ConfigError: it is of none, being weights alone, or an override cannot be used.
    """
    from ssd.config.file import parse_config
    from ssd.training.run import Run

    return Run.alone(parse_config(state.config, overrides=overrides))


@contextmanager
def photos_needed(hint: str) -> Iterator[None]:
    """A block that reads the photos of a run.

    Raises:
        UsageError: they cannot be read; the message ends in `hint`.
    """
    from data.dataset.errors import DataError
    from ssd.config.schema import ConfigError

    try:
        yield
    except (ConfigError, DataError) as error:
        raise UsageError(f"the run's photos cannot be read ({str(error).splitlines()[0]}); {hint}") from None


if __name__ == "__main__":
    sys.exit(main())
