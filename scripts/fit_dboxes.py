"""Finds DBoxes that fit the training photos of a configuration: python scripts/fit_dboxes.py CONFIG

    python scripts/fit_dboxes.py configs/mine.yaml
    python scripts/fit_dboxes.py configs/mine.yaml data.fraction=0.1

Prints how many of the objects the configuration's DBoxes cover, and how many those with the sizes and ratios that were found,
by class and by size; then the lines to put into the configuration, which name voc or coco where no others cover more. The
number of DBoxes stays the same, so that pretrained heads keep their shape; but what these have learned is relative to their own
DBoxes: a gain of a few points is not worth it.
"""

import sys

from ssd.system.arguments import config_named
from ssd.system.command import command
from ssd.system.stop import StopRequest


@command(prints_result=True)
def main(arguments: list[str] | None = None) -> int:
    config = config_named(__doc__, arguments)

    from data.dataset.coverage import all_boxes, best_overlaps, print_change
    from data.transforms.tiles import cut_tiles
    from ssd.autoconfig.dbox_fit import COVERED, fit, objects_of
    from ssd.config.yaml import dump_yaml
    from ssd.dbox import DBOX_SPECS, make_dbox_list, spec_of
    from ssd.training.datasets import load_part
    from ssd.training.run import Run

    with StopRequest().listening() as stop:
        photos = load_part(Run.alone(config, stop), "train")
    photos.require_objects("data.train", with_difficult=True)
    windows = cut_tiles(photos, config.data.tiles, config.seed).of_training()
    found = fit(objects_of(all_boxes(windows), windows.labels, config.seed))
    before, after = (best_overlaps(windows, make_dbox_list(spec_of(dboxes))) for dboxes in (config.model.dboxes, found))
    print_change(photos.classes, windows, before, after, COVERED)
    named = next((name for name, spec in DBOX_SPECS.items() if spec == spec_of(found)), None)
    print(f"\nmodel:\n  dboxes: {dump_yaml(named or found.to_plain(), in_line=True)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
