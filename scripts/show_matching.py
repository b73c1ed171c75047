"""Draws what the loss sees of photos: matched DBoxes and mined negatives: python scripts/show_matching.py CHECKPOINT

    python scripts/show_matching.py runs/mine/checkpoints/best.pt
    python scripts/show_matching.py runs/mine/checkpoints/best.pt --augmented --photos 8 --output matching.png

A row a photo, of those that the checkpoint's run was evaluated on or, with --augmented, of its training samples. From the left:
the objects, each with the DBox that it takes for itself; all positives, in the colour of their object; the negatives that the
network, with the checkpoint's weights, takes for objects most surely, the harder the darker. These and the positives are all
that the classification loss counts.
"""

import sys
import warnings
from pathlib import Path

from ssd.system.arguments import Parser, add_overrides, whole_number
from ssd.system.command import command
from ssd.system.errors import UsageError
from ssd.system.files import naming


@command()
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoints/best.pt of a run")
    parser.add_argument("--augmented", action="store_true", help="training samples as the network gets them")
    parser.add_argument("--photos", type=whole_number(1), default=3, metavar="N", help="how many (3)")
    parser.add_argument(
        "--output", type=Path, default=Path("matching.png"), metavar="FILE", help="picture to write (matching.png)"
    )
    add_overrides(parser, "data.root=/data")
    options = parser.parse_intermixed_args(arguments)

    from matplotlib.backend_bases import FigureCanvasBase

    from ssd.diagnostics.matching_picture import matching_picture

    kinds = FigureCanvasBase.get_supported_filetypes()
    if options.output.suffix.removeprefix(".") not in kinds:
        raise UsageError(f"--output {options.output}: expected the name of a picture: {', '.join(sorted(kinds))}")
    picture = matching_picture(options.checkpoint, options.augmented, options.photos, options.overrides)
    with naming(options.output), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # a photo's name has letters that the picture lacks
        picture.savefig(options.output, dpi=110)
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
