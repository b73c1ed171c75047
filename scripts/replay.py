"""Replay the step whose loss was not finite: python scripts/replay.py RUN_FOLDER

Shows the loss and gradient of each photo of the batch, in the run's precision and in float32. A value that is finite only in
float32 overflowed. A value that is finite in neither comes from the photo itself, or from weights that had already diverged.
"""

import sys
from pathlib import Path

from ssd.config import load_config
from ssd.system.arguments import Parser
from ssd.system.command import command


@command(prints_result=True)
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="the run's output_dir")
    parser.add_argument("--device", default="auto", help="auto | cpu | mps | cuda | cuda:N")
    options = parser.parse_args(arguments)
    config = load_config(options.folder / "config.yaml")

    import torch

    from ssd.diagnostics.replay import load_step, replay
    from ssd.system.device import choose_device, choose_precision

    step = load_step(options.folder)
    device = choose_device(options.device)
    broken = [name for name, value in step.weights.items() if not value.float().isfinite().all()]
    print(f"iteration {step.iteration + 1}, batch of {len(step.paths)} photos")
    print(f"non-finite weights: {', '.join(broken) or 'none'}")
    dtype_of_run = choose_precision(config.train.precision, device, config.model.row.separable)
    for dtype in dict.fromkeys([dtype_of_run, torch.float32]):
        names = ("loss_l", "loss_c", *(["loss_d"] if config.train.teacher else []), "gradient")
        print(f"\n{str(dtype).removeprefix('torch.'):10}  {'   '.join(f'{name:>8}' for name in names)}  photo")
        for losses, gradient, path in replay(step, config, device, dtype):
            print(f"{'':10}  {'   '.join(f'{value:8.4g}' for value in (*losses, gradient))}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
