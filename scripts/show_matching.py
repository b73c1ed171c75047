"""Draw the DBoxes that the loss uses, positives and mined negatives: python scripts/show_matching.py CHECKPOINT

    python scripts/show_matching.py runs/mine/checkpoints/best.pt
    python scripts/show_matching.py runs/mine/checkpoints/best.pt --augmented --photos 8 --output matching.png

Each row shows a photo that the run was evaluated on or, with --augmented, one of its training samples. From left to right: the
objects, each with its best DBox; all positives, in the colour of their object; the hardest negatives for the checkpoint's
weights, darker for a higher loss. The classification loss counts only these positives and negatives.
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
    parser.add_argument("--augmented", action="store_true", help="show augmented training samples")
    parser.add_argument("--photos", type=whole_number(1), default=3, metavar="N", help="number of photos (default: 3)")
    parser.add_argument(
        "--output", type=Path, default=Path("matching.png"), metavar="FILE", help="picture to write (default: matching.png)"
    )
    add_overrides(parser, "data.root=/data")
    options = parser.parse_intermixed_args(arguments)

    from matplotlib.backend_bases import FigureCanvasBase

    from ssd.diagnostics.matching_picture import matching_picture

    kinds = FigureCanvasBase.get_supported_filetypes()
    if options.output.suffix.removeprefix(".") not in kinds:
        raise UsageError(f"--output {options.output}: expected a picture file, one of {', '.join(sorted(kinds))}")
    picture = matching_picture(options.checkpoint, options.augmented, options.photos, options.overrides)
    with naming(options.output), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # in a photo's name
        picture.savefig(options.output, dpi=110)
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
