"""Draw photos of coloured shapes in VOC layout: python scripts/make_shapes.py datasets/shapes

    python scripts/make_shapes.py datasets/small --small --train 150 --val 30

--small draws images of 1,200 pixels a side with 10 to 40 shapes of 8 to 20 pixels, an example for data.tiles.
"""

import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from ssd.system.arguments import Parser, whole_number
from ssd.system.command import command
from ssd.system.errors import UsageError
from ssd.system.machine import num_cores

FEW = 100  # fewer images are drawn before more processes could start
MOST = 1_000_000  # images, since file names have six digits


@command()
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("datasets/shapes"), help="default: datasets/shapes")
    parser.add_argument("--train", type=whole_number(1, MOST // 2), default=1600, help="images to train on (default: 1600)")
    parser.add_argument("--val", type=whole_number(1, MOST // 2), default=300, help="images to evaluate on (default: 300)")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--small", action="store_true", help="large images with small shapes")
    parser.add_argument("--overwrite", action="store_true", help="draw into a folder that is not empty")
    options = parser.parse_args(arguments)
    if options.folder.exists() and not options.folder.is_dir():
        raise UsageError(f"{options.folder}: is a file; name a folder")
    if options.folder.is_dir() and any(options.folder.iterdir()) and not options.overwrite:
        raise UsageError(f"{options.folder}: is not empty; name another folder, or use --overwrite")

    from data.shapes import draw_image, draw_small_shapes, write_shapes

    total = options.train + options.val
    processes = 1 if total < FEW else num_cores()
    with tqdm(total=total, unit="image", disable=None) as bar:  # a bar on a terminal, nothing in a log file
        # Renamed when complete, so that an interrupted run does not block the next one.
        part = options.folder if options.overwrite else options.folder.with_name(f".{options.folder.name}.part")
        if part != options.folder:
            shutil.rmtree(part, ignore_errors=True)
        draw = draw_small_shapes if options.small else draw_image
        write_shapes(part, options.train, options.val, options.seed, processes, lambda done, _: bar.update(done - bar.n), draw)
        if part != options.folder:
            if options.folder.exists():
                options.folder.rmdir()  # empty
            part.rename(options.folder)
    print(f"{options.train} + {options.val} images in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
