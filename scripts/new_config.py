"""Write a configuration for a folder of photos with boxes: python scripts/new_config.py FOLDER

    python scripts/new_config.py datasets/mine
    python train.py --config configs/mine.yaml

The folder may use the layout of VOC (an XML file per photo), COCO (a JSON file) or YOLO (a text file per photo). Existing
splits are used; otherwise a fifth of the photos is set aside for evaluation. Training starts from COCO weights, downloaded
once. On a slow machine, the network is a light one with COCO weights, or, without them, a slim one that ships with the project.
A few steps are timed, and the run is made as long as useful within --minutes. The file gives the reason for each choice;
docs/configuration.md lists all other entries.

For a phone, a browser or a Raspberry Pi, choose the light network: --architecture ssdlite320_mobilenet_v3.
"""

import re
import sys
import time
from pathlib import Path

from ssd.architecture import ARCHITECTURES
from ssd.config.entries import top_entry
from ssd.config.file import parse_config
from ssd.config.yaml import parse_yaml
from ssd.system.arguments import Parser, whole_number
from ssd.system.command import command
from ssd.system.errors import UsageError
from ssd.system.files import require_writable, write_text


@command()
def main(arguments: list[str] | None = None) -> int:
    began = time.perf_counter()
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="photos with boxes, as VOC, COCO or YOLO")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: configs/NAME_OF_FOLDER.yaml")
    parser.add_argument("--minutes", type=whole_number(1), metavar="N", help="length of the run (30 on a CPU, 60 on a GPU)")
    parser.add_argument(
        "--architecture", choices=["auto", *ARCHITECTURES], default="auto", metavar="NAME",
        help=f"the network: {', '.join(ARCHITECTURES)}; default: auto, by the time and the speed of this machine",
    )  # fmt: skip
    parser.add_argument("--no-download", action="store_true", help="use only weights that are already on this machine")
    parser.add_argument("--scratch", action="store_true", help="use no pretrained weights")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    name = re.sub(r"\W+", "_", options.folder.resolve().stem).strip("_") or "mine"
    output = options.output or Path("configs", f"{name}.yaml")
    if output.exists() and not options.overwrite:
        raise UsageError(f"{output}: already exists; name another --output, or use --overwrite")
    require_writable(output.parent, "--output")

    import torch

    from ssd.autoconfig.proposal import propose
    from ssd.autoconfig.recipes import MINUTES
    from ssd.autoconfig.starts import Budget

    device = "cuda" if torch.cuda.is_available() else "cpu"
    budget = Budget(device, options.minutes or MINUTES[device], not options.no_download, options.scratch, options.architecture)
    text, summary = propose(options.folder, name, budget, time.perf_counter() - began)
    parse_config(parse_yaml(text, top_entry()), str(options.folder))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    print(summary)
    print(f"written: {output}; now: python train.py --config {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
