"""Looks at a folder of photos with boxes, and writes a configuration that trains on it: python scripts/new_config.py FOLDER

    python scripts/new_config.py datasets/mine
    python train.py --config configs/mine.yaml

The folder may be in VOC's layout (an XML file a photo), COCO's (a JSON file) or YOLO's (a text file a photo). Classes are those
that have objects; splits are taken as they are, or a fifth of the photos is set aside for evaluation. The network starts from
weights trained on COCO, downloaded once. Where they cannot be had, or the machine is too slow for the whole network, it is a
slim one, with weights that come with the project. Some steps are timed, and the run is made as long as it can be to end in
--minutes. The file states what was chosen, with the reason; all other entries have their defaults, which
docs/configuration.md lists.
"""

import re
import sys
import time
from pathlib import Path

from ssd.config.entries import top_entry
from ssd.config.file import parse_config
from ssd.config.yaml import parse_yaml
from ssd.system.arguments import Parser, whole_number
from ssd.system.command import command
from ssd.system.errors import UsageError
from ssd.system.files import require_writable, write_whole


@command()
def main(arguments: list[str] | None = None) -> int:
    began = time.perf_counter()
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="photos with boxes, as VOC, COCO or YOLO")
    parser.add_argument("--output", type=Path, metavar="FILE", help="by default configs/NAME_OF_FOLDER.yaml")
    parser.add_argument("--minutes", type=whole_number(1), metavar="N", help="that the run may take (30 on a CPU, 60 on a GPU)")
    parser.add_argument("--no-download", action="store_true", help="choose among the weights that are there")
    parser.add_argument("--scratch", action="store_true", help="train from scratch, without pretrained weights")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    name = re.sub(r"\W+", "_", options.folder.resolve().stem).strip("_") or "mine"
    output = options.output or Path("configs", f"{name}.yaml")
    if output.exists() and not options.overwrite:
        raise UsageError(f"{output}: exists already; name another --output, or --overwrite")
    require_writable(output.parent, "--output")

    import torch

    from ssd.autoconfig.proposal import propose
    from ssd.autoconfig.recipes import MINUTES
    from ssd.autoconfig.starts import Budget

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wish = Budget(device, options.minutes or MINUTES[device], not options.no_download, options.scratch)
    text, summary = propose(options.folder, name, wish, time.perf_counter() - began)
    parse_config(parse_yaml(text, top_entry()), str(options.folder))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda file: file.write(text.encode()))
    print(summary)
    print(f"written: {output}; now: python train.py --config {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
