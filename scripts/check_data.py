"""Check a configuration's data as training would, and show statistics: python scripts/check_data.py CONFIG

Reads every annotation and photo and lists all faults. If there are none, prints the objects per class, their sizes, and how
many of them the default boxes cover. An object that no DBox overlaps by `loss.jaccard_thresh`
is trained on a single DBox. If there are many, other sizes (`model.dboxes: coco`, or the ones that `fit_dboxes` finds) or tiles
(`data.tiles`) help more than longer training. Photos that are equal or look alike are listed, above all those of data.val with
a copy or a neighbouring frame in data.train; output_dir/duplicates.png shows the first pairs.
"""

import sys
from pathlib import Path

from ssd.system.arguments import config_named
from ssd.system.command import command
from ssd.system.errors import UserError
from ssd.system.stop import StopRequest


@command(prints_result=True)
def main(arguments: list[str] | None = None) -> int:
    config = config_named(__doc__, arguments)

    import numpy as np

    from data.dataset.coverage import best_overlaps, print_part, print_sizes
    from data.dataset.errors import DataError
    from data.transforms.tiles import cut_tiles
    from ssd.dbox import make_dbox_list, spec_of
    from ssd.diagnostics.duplicates import describe_duplicates, draw_duplicates, find_duplicates
    from ssd.training.datasets import load_data
    from ssd.training.run import Run

    try:
        with StopRequest().listening() as stop:
            train_photos, val_photos, damaged = load_data(Run.alone(config, stop), max_faults=None)
    except DataError as error:
        raise UserError(f"{error}\n{len(str(error).splitlines())} faults") from None
    thresh, input_size = config.loss.jaccard_thresh, config.model.row.input_size
    dbox_list = make_dbox_list(spec_of(config.model.dboxes, config.model.row))
    named = config.model.dboxes if isinstance(config.model.dboxes, str) else "model.dboxes"
    for line in damaged:
        print(f"left out: {line}")
    for name, photos in (("train", train_photos), ("val", val_photos)):
        print_part(
            name, photos, best_overlaps(photos, dbox_list), config.loss.jaccard_thresh, named, config.model.row.input_size
        )
    if config.data.tiles:
        crops = cut_tiles(train_photos, config.data.tiles, config.seed)
        tiles = crops.select(crops.trained & (np.arange(len(crops)) >= len(train_photos)))
        print(f"\ntiles of data.train: {len(tiles)}, {int((np.diff(tiles.starts) == 0).sum())} without objects")
        if len(tiles.labels):
            print_sizes(tiles, best_overlaps(tiles, dbox_list), thresh, named, input_size)
    duplicates = find_duplicates(train_photos, val_photos, config.data.group_by)
    lines = describe_duplicates(duplicates, train_photos, val_photos)
    if lines:
        picture = Path(config.output_dir) / "duplicates.png"
        draw_duplicates(picture, duplicates, train_photos, val_photos)
        print("", *lines, f"picture: {picture}", sep="\n")
    print(f"\nno other faults; data.damaged: skip leaves out {len(damaged)}" if damaged else "\nno faults")
    return 0


if __name__ == "__main__":
    sys.exit(main())
