"""Draws the embedded data set in VOC layout: python scripts/make_shapes.py datasets/shapes"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.shapes import CLASSES, write_shapes


def progress(numbers: range) -> Iterable[int]:
    return tqdm(numbers, unit="image", disable=None)  # a bar on a terminal, nothing in a log file


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=f"Draw images of {', '.join(CLASSES)}, with boxes in VOC layout.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("datasets/shapes"), help="default: datasets/shapes")
    parser.add_argument("--train", type=int, default=1600, help="images to train on (default: 1600)")
    parser.add_argument("--val", type=int, default=300, help="images to evaluate on (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.train < 1 or options.val < 1 or options.seed < 0:
        parser.error("--train and --val have to be at least 1, --seed at least 0")
    try:
        write_shapes(options.folder, options.train, options.val, options.seed, progress)
    except OSError as error:
        print(f"error: {options.folder}: cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{options.train} + {options.val} images in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
