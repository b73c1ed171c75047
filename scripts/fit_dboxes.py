"""Find DBoxes that fit the training photos of a configuration: python scripts/fit_dboxes.py CONFIG

    python scripts/fit_dboxes.py configs/mine.yaml
    python scripts/fit_dboxes.py configs/mine.yaml data.fraction=0.1

Prints how many objects the current and the fitted DBoxes cover, by class and by size. Then prints the lines for the
configuration, which name voc or coco if no others cover more. The number of DBoxes stays the same, so that pretrained heads
still fit. But those heads were trained for their own DBoxes, so a gain of a few points is not worth a change.
"""

import sys

from ssd.system.arguments import config_named
from ssd.system.command import command
from ssd.system.stop import StopRequest


@command(prints_result=True)
def main(arguments: list[str] | None = None) -> int:
    config = config_named(__doc__, arguments)

    from data.dataset.coverage import all_boxes, best_overlaps, print_change
    from ssd.autoconfig.dbox_fit import COVERED, fit, objects_of
    from ssd.config.yaml import dump_yaml
    from ssd.dbox import make_dbox_list, named_specs, spec_of
    from ssd.training.datasets import load_part, make_crops
    from ssd.training.run import Run

    with StopRequest().listening() as stop:
        photos = load_part(Run.alone(config, stop), "train")
    photos.require_objects("data.train", with_difficult=True)
    crops = make_crops(photos, config).of_training()
    row = config.model.row
    found = fit(objects_of(all_boxes(crops), crops.labels, config.seed, row))
    before, after = (best_overlaps(crops, make_dbox_list(spec_of(dboxes, row))) for dboxes in (config.model.dboxes, found))
    print_change(photos.classes, crops, before, after, COVERED, row.input_size)
    named = next((name for name, spec in named_specs(row).items() if spec == spec_of(found, row)), None)
    print(f"\nmodel:\n  dboxes: {dump_yaml(named or found.to_plain(), in_line=True)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
