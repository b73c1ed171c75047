"""Rank labels that contradict a trained network: python scripts/check_labels.py CHECKPOINT

    python scripts/check_labels.py runs/mine/checkpoints/best.pt
    python scripts/check_labels.py runs/mine/checkpoints/best.pt --split val --formats voc

Suspects are confident detections without a label, labels that are not detected although similar objects are, and labels whose
class or box differs from the detection. labels.html shows the likeliest; a tenth of the list, at least 100, is written for a
labelling tool:

    coco    coco.json: open it with the photos; scores fall from 1, the likeliest, to 0
    voc     Annotations/NAME.xml, one file per photo
    yolo, cvat, label-studio, labelme    as scripts/detect.py writes them

The name of a box says what may be wrong: "missing: cat", "wrong class: cat" (with the detected class), "wrong box: cat",
"nothing there: cat". Long training can teach a network the wrong labels; an early checkpoint then finds more of them.
"""

import sys
from pathlib import Path

from ssd.system.arguments import Parser, add_overrides, names_of, whole_number
from ssd.system.command import command

FORMATS = ("coco", "voc", "yolo", "cvat", "label-studio", "labelme")


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
    parser.add_argument("--pictures", type=whole_number(0), default=60, metavar="N", help="pictures in labels.html (60)")
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
    print(f"{count} labels to check, the likeliest first: {folder}")
    if options.pictures:
        print(f"pictures of the likeliest: {folder / 'labels.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
