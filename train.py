"""Trains SSD300, an object detector, on photos with boxes, as a YAML file says: python train.py --config FILE

    python scripts/new_config.py datasets/mine                writes such a file for a folder of photos
    python train.py --config configs/mine.yaml --dry-run      tells what the run will take
    python train.py --config configs/mine.yaml                trains; Ctrl-C saves and ends
    python train.py --config configs/mine.yaml --resume auto  resumes from the newest checkpoint
    python train.py --config configs/mine.yaml --eval-only    evaluates the best checkpoint and rewrites the report

The results are written to output_dir (runs/mine): report.html to look at, checkpoints/best.pt for scripts/detect.py.
docs/configuration.md explains every entry of the file. On several GPUs: torchrun --nproc-per-node N train.py --config FILE.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.config.file import load_config
from ssd.system.arguments import Parser, add_overrides
from ssd.system.command import command
from ssd.system.files import require_writable
from ssd.system.stop import StopRequest

if TYPE_CHECKING:
    from ssd.training.run import Run


@command(
    resume="resume with --resume auto",
    less_memory="try train.batch_size=auto, a smaller one, or a larger train.accumulate, which changes nothing else, but "
    "for the statistics of batch normalisation; in an evaluation a smaller eval.batch_size",
)
def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    began = time.perf_counter()
    options = parse_arguments(arguments)
    config = load_config(options.config, options.overrides)
    # An evaluation can do without its report, and of several processes the first one alone writes.
    if not options.eval_only and os.environ.get("RANK", "0") == "0":
        require_writable(Path(config.output_dir), "output_dir")
    with StopRequest().listening() as stop:
        # PyTorch takes seconds to load: not before all that can be said without it is said.
        from ssd.autoconfig.dry_run import dry_run
        from ssd.training.checkpoints import locked
        from ssd.training.run import open_run
        from ssd.training.validate import eval_only

        with open_run(config, stop) as run:
            if options.eval_only:
                eval_only(run, options.resume)
            elif options.dry_run:
                dry_run(run, began)
            else:
                stop.after(config.train.max_hours)
                with locked(run.folder, run.world):
                    train(run, options.resume, options.overwrite)
    return 0


def train(run: "Run", resume: str | None, overwrite: bool) -> None:
    """Trains to the end of the schedule, from the start or from a checkpoint, and evaluates."""
    from ssd.diagnostics.replay import explain_non_finite
    from ssd.training.build import build_parts, describe, first_state
    from ssd.training.checkpoints import BEST, Checkpoints, find_same_state, find_state, list_damaged, make_folder
    from ssd.training.datasets import train_loader, val_loader
    from ssd.training.run import require_same_config
    from ssd.training.run_log import RunLog
    from ssd.training.trainer import Trainer
    from ssd.training.validate import evaluate_checkpoint, evaluate_photos, finish

    require_same_config(run)
    find = partial(find_state, run.folder, resume, overwrite, run.say)
    found = find_same_state(run.world, find, lambda found: found.state)
    parts = build_parts(run, found.state)
    samples, val_samples, preprocessing, schedule = parts.samples, parts.val_samples, parts.preprocessing, parts.schedule
    state = first_state(run, preprocessing, found)
    batches = train_loader(run, samples, schedule.iterations, state.iteration)
    make_folder(run.folder, state, found, run.world)
    list_damaged(run.folder, parts.damaged, run.world)
    describe(run, parts, state.iteration)
    checkpoints = Checkpoints(run.folder / "checkpoints", schedule.keep)
    evaluate = partial(evaluate_photos, run, val_samples, preprocessing)
    with RunLog(run.folder, schedule.iterations, state, val_samples, run.world.is_main) as log:
        trainer = Trainer(parts.step, schedule, state, checkpoints, log, val_loader(run, val_samples), evaluate, run.stop)
        if state.iteration == 0:
            log.picture_samples(samples)
        with explain_non_finite(run, samples, preprocessing, parts.model):
            best = trainer.fit(batches)
    if state.iteration >= schedule.iterations:
        run.say("nothing left to train")
    path = checkpoints.folder / BEST
    finish(run, val_samples, path, best or evaluate_checkpoint(run, path, val_samples, preprocessing, parts.model))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="the YAML file that describes the run")
    parser.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="resume from a checkpoint; auto: the newest valid one in output_dir, or start if there is none",
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate output_dir's best checkpoint, or the one --resume names"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, do a few steps and a short evaluation, tell what the run will take, write nothing",
    )
    parser.add_argument("--overwrite", action="store_true", help="give up what output_dir holds: start again, or go back")
    add_overrides(parser, "train.lr=5e-4")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
