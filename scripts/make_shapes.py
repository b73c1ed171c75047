"""Draws the embedded data set in VOC layout: python scripts/make_shapes.py datasets/shapes"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from ssd.system.command import command
from ssd.system.files import naming


def progress(numbers: range) -> Iterable[int]:
    return tqdm(numbers, unit="image", disable=None)  # a bar on a terminal, nothing in a log file


@command()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("datasets/shapes"), help="default: datasets/shapes")
    parser.add_argument("--train", type=int, default=1600, help="images to train on (default: 1600)")
    parser.add_argument("--val", type=int, default=300, help="images to evaluate on (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.train < 1 or options.val < 1 or options.seed < 0:
        parser.error("--train and --val have to be at least 1, --seed at least 0")

    from data.shapes import write_shapes

    with naming(options.folder):
        write_shapes(options.folder, options.train, options.val, options.seed, progress)
    print(f"{options.train} + {options.val} images in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
