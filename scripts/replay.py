"""Runs the step again at which a run's loss was not finite: python scripts/replay.py RUN_FOLDER

Loss and gradient of each photo of the batch are shown, in the run's precision and in float32. What is finite in
float32 alone overflowed; what is finite in neither has a fault of its own, or met weights that had already run away.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from ssd.batch import Targets
from ssd.config import Config, ConfigError
from ssd.config_file import load_config
from ssd.loss import MultiBoxLoss
from ssd.preparation import prepare
from ssd.system.device import choose_device, choose_precision
from ssd.training.replay import Fault, load_fault
from ssd.weights.checkpoint import CheckpointError
from ssd.weights.pretrained import build_network


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="the output_dir of the run")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.folder / "config.yaml")
        fault = load_fault(options.folder)
        device = choose_device(options.device)
        dtypes = dict.fromkeys([choose_precision(config.train.precision, device), torch.float32])
    except (ConfigError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    broken = [name for name, value in fault.weights.items() if not value.float().isfinite().all()]
    print(f"iteration {fault.iteration + 1}, a batch of {len(fault.paths)} photos")
    print(f"weights that are not finite: {', '.join(broken) or 'none'}")
    for dtype in dtypes:
        print(f"\n{str(dtype).removeprefix('torch.'):10}    loss_l      loss_c   gradient  photo")
        for loss_l, loss_c, gradient, path in replay(fault, config, device, dtype):
            print(f"{'':10}  {loss_l:8.4g}    {loss_c:8.4g}   {gradient:8.4g}  {path}")
    return 0


def replay(fault: Fault, config: Config, device: torch.device, dtype: torch.dtype) -> list[tuple[float, float, float, str]]:
    """Both losses, the norm of their gradient, and the photo, for each photo of the batch."""
    model = build_network(len(config.data.class_names) + 1, config.model).to(device).train()
    model.load_state_dict(fault.weights)
    criterion = MultiBoxLoss(config.loss.jaccard_thresh, config.loss.neg_pos)
    # Batch normalisation needs the whole batch, so all photos go through the network together.
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loc, conf, dbox_list = model(prepare(fault.batch.images, fault.preparation, device))
    rows = []
    for i, path in enumerate(fault.paths):
        targets = fault.batch.targets
        objects = (targets.labels[i] >= 0).nonzero().flatten()
        own = Targets(targets.boxes[i : i + 1], targets.labels[i : i + 1], objects)
        losses = criterion((loc[i : i + 1], conf[i : i + 1], dbox_list), own)
        gradients = torch.autograd.grad(losses[0] + losses[1], list(model.parameters()), retain_graph=True, allow_unused=True)
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        rows.append((losses[0].item(), losses[1].item(), norm.item(), path))
    return rows


if __name__ == "__main__":
    sys.exit(main())
