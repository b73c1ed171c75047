"""A dry run: a few steps of a training, and an estimate of the whole."""

import time

import torch

from ssd.autoconfig.timing import measure
from ssd.system.machine import memory_in_use
from ssd.training.build import build_model, build_parts, build_teacher
from ssd.training.datasets import cache_copies, load_data
from ssd.training.run import Run
from ssd.training.run_log import describe, duration


def dry_run(run: Run, began: float, num_runs: int = 1) -> None:
    """Train for a few steps and print the time and memory of the whole run. Writes nothing.

    Args:
        run: the run.
        began: start of the command, by `time.perf_counter`.
        num_runs: runs like this one that follow each other.
    """
    teacher = build_teacher(run)
    data = load_data(run)
    parts = build_parts(run, data, *build_model(run, None, data.train), teacher=teacher)
    describe(run, parts, 0)
    timings = measure(run, parts, time.perf_counter() - began)
    iterations, cache = parts.schedule.iterations, parts.train_set.cache
    evaluations = -(-iterations // run.config.eval.every)
    if run.device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU's memory"
    else:
        memory = f"{memory_in_use() / 2**30:.1f} GiB of memory"
    more = f", later {cache.bytes * cache_copies(run) / 2**30:.1f} GiB more for data.cache: ram" if cache else ""
    run.say(f"a step takes {timings.step:.2f} s ({run.batch_size / timings.step:.1f} images/s) and {memory}{more}")
    run.say(
        f"start {timings.start:.0f} s, an evaluation {timings.evaluation:.1f} s, a checkpoint {timings.checkpoint:.1f} s, "
        f"report {timings.end:.1f} s" + (f", decoding all photos once {timings.decoding:.0f} s" if cache else "")
    )
    if timings.warning:
        run.say("; ".join(filter(None, (timings.warning, run.threads.advice))))
    seconds = timings.of_run(iterations, evaluations, iterations // run.config.checkpoint.every)
    run.say(f"the run will take about {duration(seconds)}: {iterations} steps and {evaluations} evaluations")
    if num_runs > 1:
        run.say(f"{num_runs} such runs will take about {duration(num_runs * seconds)}")
