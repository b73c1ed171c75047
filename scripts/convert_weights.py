"""Convert another project's SSD weights to a checkpoint: python scripts/convert_weights.py FILE

    python scripts/convert_weights.py ssd300_mAP_77.43_v2.pth
    python scripts/detect.py ssd300_mAP_77.43_v2.converted.pt photos/

The formats of amdegroot/ssd.pytorch, lufficc/SSD and qfgaohao/pytorch-ssd (SSD300 and SSD512 with VGG16), and torchvision's
ssd300_vgg16 and ssdlite320_mobilenet_v3_large are recognised.
To train from such weights, no conversion is needed: name the file in model.init_from.
"""

import sys
from pathlib import Path

from ssd.architecture import ARCHITECTURES
from ssd.system.arguments import Parser
from ssd.system.command import command
from ssd.system.errors import UsageError


@command()
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the other project's file")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: NAME.converted.pt beside FILE")
    parser.add_argument(
        "--classes", metavar="A,B,...", help="names in the file's order, without background; default: VOC's or COCO's"
    )
    parser.add_argument(
        "--dboxes",
        choices=sorted({name for row in ARCHITECTURES.values() for name in row.dbox_sizes}),
        help="DBox sizes of the file; default: coco for COCO's classes, otherwise voc",
    )
    options = parser.parse_args(arguments)
    output = options.output or options.file.with_suffix(".converted.pt")
    if output.exists():
        raise UsageError(f"{output}: already exists; remove it, or choose another --output")

    from ssd.weights.checkpoint import CheckpointError, save_checkpoint
    from ssd.weights.formats import load_any

    classes = [name.strip() for name in options.classes.split(",")] if options.classes else None
    state, project = load_any(options.file, classes, options.dboxes)
    if project == "here":
        raise CheckpointError(f"{options.file}: is already a checkpoint of this application")
    save_checkpoint(output, state)
    model, mean = state.config["model"], ", ".join(f"{value:g}" for value in state.preprocessing["mean"])
    print(f"format: {project}; {len(state.weights)} tensors")
    print(f"classes: {', '.join(state.classes)}")
    print(f"architecture: {model['architecture']}; DBoxes: {model['dboxes']}, clamped")
    print(f"norm of the first map: {model['conv4_3_norm']}; input: RGB minus {mean}")
    print(f"written: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
