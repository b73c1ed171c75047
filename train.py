"""Train an SSD300 object detector from a YAML configuration: python train.py --config FILE

    python scripts/new_config.py datasets/mine                write a configuration for a folder of photos
    python train.py --config configs/mine.yaml --dry-run      estimate time and memory
    python train.py --config configs/mine.yaml                train; Ctrl-C saves and exits
    python train.py --config configs/mine.yaml --resume auto  resume from the newest checkpoint
    python train.py --config configs/mine.yaml --eval-only    evaluate the best checkpoint and rewrite the report
    python train.py --config configs/mine.yaml --folds 5      train on each four fifths: mean and spread of mAP

Results go to output_dir (runs/mine): open report.html; give checkpoints/best.pt to scripts/detect.py.
docs/configuration.md explains every entry. On several GPUs: torchrun --nproc-per-node N train.py --config FILE.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ssd.config import load_config
from ssd.system.arguments import Parser, add_overrides, whole_number
from ssd.system.command import command
from ssd.system.files import require_writable
from ssd.system.stop import StopRequest

if TYPE_CHECKING:
    from ssd.training.run import Run
    from ssd.training.validate import Best


@command(
    resume="resume with --resume auto",
    less_memory="try train.batch_size=auto, a smaller train.batch_size, or a larger train.accumulate, which affects only the "
    "statistics of batch normalisation; during evaluation try a smaller eval.batch_size",
)
def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    began = time.perf_counter()
    options = parse_arguments(arguments)
    config = load_config(options.config, options.overrides)
    # Only the main process writes, and an evaluation can do without its report.
    if not options.eval_only and os.environ.get("RANK", "0") == "0":
        require_writable(Path(config.output_dir), "output_dir")
    with StopRequest().listening() as stop:
        # PyTorch takes seconds to import, so the checks above come first.
        from ssd.autoconfig.dry_run import dry_run
        from ssd.diagnostics.variance import carry_out, make_runs
        from ssd.training.run import find_start, locked, open_run
        from ssd.training.validate import eval_only

        def task(run: "Run") -> "Best":
            if options.eval_only:
                return eval_only(run, options.resume)
            with locked(run):
                return train(run, options.resume, options.overwrite)

        with open_run(config, stop) as run:
            runs = make_runs(run, options.seeds, options.folds)
            if options.dry_run and not options.eval_only:
                dry_run(runs[0], began, len(runs))
                return 0
            stop.after(None if options.eval_only else config.train.max_hours)
            if len(runs) > 1:
                if options.resume is None and not options.eval_only:
                    for each in runs:  # not only when the runs before it have ended
                        find_start(each, None, options.overwrite)
                carry_out(run, runs, task)
            else:
                task(run)
    return 0


def train(run: "Run", resume: str | None, overwrite: bool) -> "Best":
    """Train to the end of the schedule, from the beginning or a checkpoint, and evaluate the best checkpoint."""
    from ssd.training.build import build_model, build_parts, build_teacher
    from ssd.training.checkpoints import BEST, Checkpoints, make_folder
    from ssd.training.datasets import list_damaged, load_data, train_loader
    from ssd.training.run import find_start, first_state, require_same_config
    from ssd.training.run_log import RunLog, describe
    from ssd.training.trainer import NonFiniteError, Trainer
    from ssd.training.validate import evaluate_checkpoint, finish

    require_same_config(run)
    start = find_start(run, resume, overwrite)
    teacher = build_teacher(run)
    data = load_data(run)
    model, preprocessing = build_model(run, start.state, data.train)
    parts = build_parts(run, data, model, preprocessing, start.state, teacher)
    train_set, val_set, schedule, _ = parts
    batches = train_loader(run, train_set, schedule.iterations, start.iteration)
    state = first_state(run, preprocessing, start)
    make_folder(run.world, run.folder, state, start)  # writes first here, so a run that cannot start changes nothing
    list_damaged(run, data.damaged)
    describe(run, parts, state.iteration)
    checkpoints = Checkpoints(run.folder / "checkpoints", run.config.checkpoint.keep)
    with RunLog(run.folder, schedule.iterations, state, val_set, run.world.is_main) as log:
        trainer = Trainer(run, parts, state, checkpoints, log)
        if state.iteration == 0:
            log.picture_samples(train_set)
        try:
            best = trainer.fit(batches)
        except NonFiniteError as error:
            from ssd.diagnostics.replay import explain_non_finite

            raise explain_non_finite(run, train_set, preprocessing, model, error.iteration) from None
    if state.iteration >= schedule.iterations:
        run.say("nothing left to train")
    path = checkpoints.folder / BEST
    best = best or evaluate_checkpoint(run, path, val_set, preprocessing, model)
    finish(run, val_set, path, best)
    return best


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="the YAML file that describes the run")
    parser.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="resume from a checkpoint; auto: the newest valid one in output_dir, or from the beginning if there is none",
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate the best checkpoint in output_dir, or the one that --resume names"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="take a few steps and a short evaluation, print the time and memory the run will need, write nothing",
    )
    parser.add_argument("--overwrite", action="store_true", help="give up results in output_dir: start again, or go back")
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--seeds",
        type=whole_number(2),
        metavar="N",
        help="train N times, with seeds from the configuration's on, and print mean and spread of mAP",
    )
    several.add_argument(
        "--folds",
        type=whole_number(2),
        metavar="K",
        help="divide the photos of data.train into K folds, evaluate on each a run trained on the others, and print mean and "
        "spread of mAP",
    )
    add_overrides(parser, "train.lr=5e-4")
    options = parser.parse_intermixed_args(arguments)
    if (options.seeds or options.folds) and options.resume not in (None, "auto"):
        parser.error("--resume PATH resumes a single run; give --resume auto with --seeds and --folds")
    return options


if __name__ == "__main__":
    sys.exit(main())
