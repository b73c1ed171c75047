"""Lists labels that are likely to be wrong, by what a trained network finds: python scripts/check_labels.py CHECKPOINT

    python scripts/check_labels.py runs/mine/checkpoints/best.pt
    python scripts/check_labels.py runs/mine/checkpoints/best.pt --split val --formats voc

What the network finds surely and nobody has labelled; what is labelled and not found, though objects of that class and size
are; other classes, other boxes. The first of the list are shown in labels.html; a tenth of it, at least 100, is written for a
labelling tool:

    coco    coco.json: open it beside the photos; the score falls from 1, the first of the list, to 0
    voc     Annotations/NAME.xml, a file a photo

The name of a box says what may be wrong: "missing: cat", "wrong class: cat" (the class is what was found), "wrong box: cat",
"nothing there: cat". A network that has trained for long on a wrong label may have learned it: an early checkpoint finds more.
"""

import sys
from pathlib import Path

from ssd.system.arguments import Parser, add_overrides, names_of, whole_number
from ssd.system.command import command

FORMATS = ("coco", "voc")


@command(less_memory="try a smaller eval.batch_size, or device=cpu")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoints/best.pt of a run")
    parser.add_argument("--split", choices=("train", "val"), default="train", help="photos of data.train (default) or data.val")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="by default labels_train, labels_train-2 and so on in the run's folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into an --output folder that is not empty")
    parser.add_argument("--formats", type=names_of(FORMATS), default=["coco"], metavar="F,...", help=", ".join(FORMATS))
    parser.add_argument("--pictures", type=whole_number(0), default=60, metavar="N", help="how many are shown (60)")
    add_overrides(parser, "data.root=/data")
    options = parser.parse_intermixed_args(arguments)

    from ssd.diagnostics.label_check import check_labels

    folder, count = check_labels(
        options.checkpoint,
        options.split,
        options.output,
        options.formats,
        options.pictures,
        options.overwrite,
        options.overrides,
    )
    print(f"{count} labels to look at, the likeliest first: {folder}")
    if options.pictures:
        print(f"the first of them in pictures: {folder / 'labels.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
