"""Make a network narrower: python scripts/slim.py SOURCE --width 0.5

    python scripts/slim.py runs/mine/checkpoints/best.pt --width 0.5
    python scripts/slim.py half --width 0.25 --photos photos/
    python scripts/slim.py vgg16_features.pth --width 0.5 --photos photos/

SOURCE is a checkpoint, shipped weights by their name, or VGG16's 13 convolutions in torchvision's layout. The channels that the
next layers need least are removed, and the weights of the others are refitted by least squares on the run's training photos or
those in --photos. --width is relative to VGG16: 0.5 has half its channels and about a quarter of its arithmetic.

Prints each layer's unexplained variance, parameters and GFLOP and, if the run's validation photos are available, mAP before and
after. The new file is a checkpoint with weights only. Some epochs of training recover most of the lost mAP: name the file in
model.init_from, with its model.width, and SOURCE in train.teacher. If the run's photos have moved, add data.root=FOLDER.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.system.arguments import Parser, add_overrides, bounded, whole_number
from ssd.system.command import command
from ssd.system.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from data.loading.dataset import DetectionDataset
    from ssd.compress.prune import LayerFit
    from ssd.model import SSD
    from ssd.preprocessing import Preprocessing
    from ssd.training.run import Run
    from ssd.weights.checkpoint import TrainState

MAX_WIDTH = 4.0
width = bounded(float, lambda value: 0 < value <= MAX_WIDTH, f"a factor above 0, up to {MAX_WIDTH:g}")


@command()
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    output = options.output or options.source.with_suffix(f".width{options.width:g}.pt")
    check_usage(options, output)
    from ssd.compress.features import features_in
    from ssd.weights.checkpoint import read_tensors, save_checkpoint
    from ssd.weights.formats import state_of
    from ssd.weights.sources import checkpoint_file

    options.source = checkpoint_file(options.source)
    content = read_tensors(options.source)
    features = features_in(content)
    if features is not None:
        state = slim_features(features, options)
    else:
        state = slim_checkpoint(state_of(content, options.source)[0], options)
    save_checkpoint(output, state)
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB")
    return 0


def slim_features(features: dict, options: argparse.Namespace) -> "TrainState":
    """Return the initial weights of a narrower network from VGG16's convolutions."""
    from ssd.backbones.vgg import CONV_NAMES
    from ssd.compress.features import start_from_features
    from ssd.config.schema import ModelConfig
    from ssd.weights.checkpoint import TrainState
    from ssd.weights.pretrained import build_network

    if not options.photos:
        raise UsageError(f"{options.source}: is not from a run and names no photos; name a folder with --photos")
    shape = ModelConfig(pretrained="none", width=options.width, batch_norm=options.batch_norm or "backbone")
    network = build_network(2, shape)
    pixels = pixels_of_folder(options.photos, options.number, network.input_size)
    preprocessing = start_from_features(network, features, pixels, str(options.source), report)
    layers = tuple(f"backbone.{name}." for name in CONV_NAMES)
    weights = {name: value for name, value in network.state_dict().items() if name.startswith(layers)}
    print("fc6, fc7, the extra layers and the heads are not in the file; training initialises them at random")
    return TrainState(weights, [], preprocessing.to_plain(), {"model": shape.model_dump(mode="json")})


def slim_checkpoint(state: "TrainState", options: argparse.Namespace) -> "TrainState":
    """Return a checkpoint with fewer channels, and print its size and mAP before and after."""
    import torch

    from ssd.backbones.vgg import VGG16
    from ssd.compress.prune import prune
    from ssd.config.file import parse_config
    from ssd.config.schema import ModelConfig
    from ssd.preprocessing import Preprocessing, normalize
    from ssd.training.datasets import load_part, sample_pixels
    from ssd.training.run import Run
    from ssd.training.validate import evaluate_photos
    from ssd.weights.checkpoint import TrainState, shape_of
    from ssd.weights.pretrained import build_network, network_of

    wide = network_of(state)
    if not isinstance(wide.backbone, VGG16):
        raise UsageError(f"{options.source}: is {wide.architecture.title}; only networks with VGG16 can be made narrower")
    if options.width > wide.width:
        raise UsageError(f"--width {options.width:g}: the checkpoint has width {wide.width:g}; name a smaller one")
    given = {"width": options.width, **({"batch_norm": options.batch_norm} if options.batch_norm else {})}
    shape = ModelConfig.model_validate({**shape_of(state.config["model"]), **given})
    narrow = build_network(len(state.classes) + 1, shape).eval()
    preprocessing = Preprocessing.from_plain(state.preprocessing)
    run = None
    if options.photos:
        pixels = pixels_of_folder(options.photos, options.number, wide.input_size)
    elif "train" in state.config.get("data", {}):
        run = Run.alone(parse_config(state.config, str(options.source), options.overrides))
        pixels = sample_pixels(run, load_part(run, "train"), options.number)
    else:
        raise UsageError(f"{options.source}: contains only weights and names no photos; name a folder with --photos")
    for layer in prune(wide, narrow, normalize(pixels, preprocessing, memory_format=torch.contiguous_format)):
        report(layer)
    samples = validation_samples(run, preprocessing) if run else None
    for network in (wide, narrow):
        parameters = sum(parameter.numel() for parameter in network.parameters())
        figure = f", {evaluate_photos(run, samples, preprocessing, network).summary}" if run and samples else ""
        print(f"width {network.width:g}: {parameters:,} parameters, {gflop(network):.2f} GFLOP a photo{figure}", flush=True)
    config = {**state.config, "model": shape.model_dump(mode="json")}
    return TrainState(narrow.state_dict(), state.classes, state.preprocessing, config)


def report(layer: "LayerFit") -> None:
    name = layer.name.removeprefix("backbone.").removeprefix("extras.")
    print(f"{name:9} {layer.kept:5} of {layer.of:4} channels  unexplained variance {layer.unexplained:.3f}", flush=True)


def pixels_of_folder(folder: Path, number: int, size: int) -> "Tensor":
    """Return up to `number` of a folder's photos at the network's size, `[N, size, size, 3]` uint8 RGB.

    Raises:
        UsageError: the folder contains no photos.
    """
    import numpy as np
    import torch

    from ssd.inference.pictures import evenly_spaced
    from ssd.preprocessing import to_input_size
    from ssd.system.images import SUFFIXES, read_photo

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"--photos {folder}: contains no photos ({', '.join(SUFFIXES)})")
    photos = (read_photo(paths[index]) for index in evenly_spaced(len(paths), number))
    return torch.from_numpy(np.stack([to_input_size(photo, size) for photo in photos]))


def gflop(network: "SSD") -> float:
    """Return the GFLOP for one photo; a multiplication and an addition count as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, network.input_size, network.input_size))
    return counter.get_total_flops() / 1e9


def validation_samples(run: "Run", preprocessing: "Preprocessing") -> "DetectionDataset | None":
    """Return the run's validation photos, or print a note and return None if they cannot be read."""
    from data.dataset.errors import DataError
    from ssd.training.datasets import eval_dataset, load_part

    try:
        return eval_dataset(run, load_part(run, "val"), preprocessing)
    except DataError as error:
        print(f"note: the validation photos cannot be read ({str(error).splitlines()[0]})", file=sys.stderr)
        return None


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a checkpoint, a shipped name, or VGG16's convolutions")
    parser.add_argument("--width", type=width, required=True, metavar="W", help="channels of the new network relative to VGG16")
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="photos to refit the weights on (default: the run's training photos)"
    )
    parser.add_argument("--number", type=whole_number(1), default=64, metavar="N", help="number of photos to use (64)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="by default beside SOURCE, NAME.width0.5.pt and so on; of shipped weights in this folder",
    )
    parser.add_argument(
        "--batch-norm", choices=("none", "backbone"), help="of the new network (the checkpoint's; for VGG16: backbone)"
    )
    add_overrides(parser, "data.root=/data, the folder of the run's photos")
    return parser.parse_intermixed_args(arguments)


def check_usage(options: argparse.Namespace, output: Path) -> None:
    """Check paths before the work starts.

    Raises:
        UsageError: the output exists or its folder does not, or the folder of photos does not.
    """
    if output.exists():
        raise UsageError(f"{output}: already exists; remove it, or choose another --output")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: no such folder")
    if options.photos and not options.photos.is_dir():
        raise UsageError(f"--photos {options.photos}: no such folder")


if __name__ == "__main__":
    sys.exit(main())
