"""Measure the speed of each part, compared with torchvision's SSD300 and with a floor, the work that nobody can avoid.

    python scripts/benchmark.py --config configs/voc07s.yaml
    python scripts/benchmark.py --device cuda --only step,train --batch-size 32,128,256 --compile
    python scripts/benchmark.py --only architectures --json architectures.json

The variants of a case alternate in one process; each time is the median over the rounds. Look at the ratio: a busy machine
changes it far less than the times. torchvision runs in float32 and in the machine's best precision, in both memory formats; its
fastest variant counts. It uses the default memory allocator. Ours and the floor use one that keeps freed memory, as `train.py`
does; with --same-allocator, torchvision uses that too. The first line names the processor's vector and matrix instructions:
results from different processors are not comparable.

Two cases run only if named. `loader` measures the loader processes that a GPU gets. `architectures` compares each network with
torchvision's SSD300 and SSDLite320 in their fastest variants, in one training step and in inference with 1 and 16 photos. It
prints a table in Markdown: time, and the speed as ratios to these two.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from ssd.config import load_config
from ssd.system.arguments import Parser, names_of, several, whole_number
from ssd.system.command import command

# Default batch sizes of each case.
BATCH_SIZES = {
    "data": [32], "step": [8], "loss": [32], "predict": [1, 16], "detect": [8], "eval": [1], "train": [8], "start": [1],
    "loader": [32], "architectures": [8],
}  # fmt: skip
ON_REQUEST = {"loader", "architectures"}


@command(less_memory="try a smaller --batch-size", prints_result=True)
def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    config = load_config(options.config, options.overrides)

    import torch

    from scripts.benchmarks.cases import CASES, make_setting, show
    from ssd.system.device import processor_features

    setting = make_setting(config, options)
    where = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else setting.device
    processor = f"processor with {', '.join(processor_features())}, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, {setting.dtype}; {processor}", flush=True)
    measured: list[NamedTuple] = []
    for name in options.only:
        for batch_size in options.batch_size or BATCH_SIZES[name]:
            new = CASES[name](setting, batch_size)
            show(new)
            measured += new
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in measured], indent=1) + "\n")
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--config", default="configs/voc07s.yaml", metavar="FILE", help="for the photos, and for `train`")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument(
        "--only", type=names_of(BATCH_SIZES), metavar="CASE,...", help=", ".join(BATCH_SIZES),
        default=[name for name in BATCH_SIZES if name not in ON_REQUEST],
    )  # fmt: skip
    parser.add_argument("--batch-size", type=several(whole_number(1)), metavar="N,...", help="default: by case")
    parser.add_argument("--rounds", type=whole_number(1), default=7, help="measured rounds; more give steadier results")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    parser.add_argument("--profile", action="store_true", help="print where the step spends its time")
    parser.add_argument("--same-allocator", action="store_true", help="let torchvision keep freed memory too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change an entry of the configuration")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
