"""Choose the photos to label next: python scripts/label_next.py [CHECKPOINT] PHOTOS...

    python scripts/label_next.py runs/mine/checkpoints/best.pt photos/ --number 50
    python scripts/label_next.py runs/mine/checkpoints/best.pt photos/ --exclude labelled/ --formats cvat

PHOTOS are photos, folders (searched recursively) and patterns in quotes; without a CHECKPOINT, the shipped network `half` is
used. Chosen are photos in which the network is unsure of many detections, and which differ from each other. Left out are
copies, photos that the checkpoint was trained or evaluated on, and those that --exclude names. The output folder receives

    label_next.txt     the chosen photos, one per line, in the order of choice
    label_next.html    their pictures with the detections
    pre-labels         of the chosen photos, in the --formats of scripts/detect.py

Nothing is written if the command is interrupted. Unreadable photos are reported and skipped, and the exit code is then 2.
"""

import sys
from pathlib import Path

from ssd.system.arguments import Parser, fraction, names_of, whole_number
from ssd.system.command import command
from ssd.system.errors import UsageError

FORMATS = ("json", "csv", "voc", "coco", "yolo", "cvat", "label-studio", "labelme")


@command(less_memory="try a smaller --batch-size")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("words", nargs="+", metavar="CHECKPOINT PHOTOS", help="a checkpoint (half), then photos and folders")
    parser.add_argument("--number", type=whole_number(1), default=50, metavar="N", help="photos to choose (50)")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PHOTOS",
        help="labelled photos: a folder, a pattern, or a text file with a photo per line; can be repeated",
    )  # fmt: skip
    parser.add_argument("--score", type=fraction, metavar="S", help="minimum score of a pre-label, as in scripts/detect.py")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="by default runs/label_next, runs/label_next-2 and so on")
    parser.add_argument("--overwrite", action="store_true", help="write into an --output folder that is not empty")
    parser.add_argument("--formats", type=names_of(FORMATS), default=["coco"], metavar="F,...", help=", ".join(FORMATS))
    parser.add_argument("--batch-size", type=whole_number(1), default=16, metavar="N", help="photos or tiles per batch (16)")
    parser.add_argument("--device", default="auto", help="auto | cpu | mps | cuda | cuda:N")
    options = parser.parse_intermixed_args(arguments)

    from ssd.deploy.inputs import find_inputs, split_checkpoint
    from ssd.diagnostics.label_next import LEAST_SCORE, describe, find_labelled, label_next
    from ssd.inference.predictor import Predictor
    from ssd.system.device import keep_freed_memory
    from ssd.system.images import passed_over, printable
    from ssd.weights.checkpoint import load_checkpoint
    from ssd.weights.sources import checkpoint_file

    keep_freed_memory()
    checkpoint, words = split_checkpoint(options.words)
    if not words:
        raise UsageError(f"{checkpoint}: name photos after the checkpoint")
    inputs = find_inputs(words)
    if passed_over(inputs.unread):
        print(f"note: {passed_over(inputs.unread)}", file=sys.stderr)
    if inputs.videos:
        print(f"note: {len(inputs.videos)} videos skipped; save their frames as photos", file=sys.stderr)
    state = load_checkpoint(checkpoint_file(checkpoint))
    scorer = Predictor.from_checkpoint(state, options.device, score_thresh=LEAST_SCORE)
    labeller = Predictor.from_checkpoint(checkpoint, options.device, score_thresh=options.score)
    labelled = find_labelled(state, checkpoint, options.exclude)
    choice = label_next(
        scorer, labeller, inputs.photos, labelled, options.number, options.output, options.overwrite, options.formats,
        options.batch_size,
    )  # fmt: skip
    folder, found = choice.folder, choice.candidates
    print(f"{choice.num_chosen} photos to label next, of {len(found.photos)} without labels; {describe(found)}")
    print(f"{choice.num_objects} objects in the pre-labels")
    print(f"written to {printable(folder)}; look at {printable(folder / 'label_next.html')}")
    return 2 if found.num_damaged else 0


if __name__ == "__main__":
    sys.exit(main())
