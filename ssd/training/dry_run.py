"""A dry run: what training does, for a few steps, and what the whole of it will take."""

import time

import torch

from ssd.system.machine import memory_in_use
from ssd.system.stop import Stopped
from ssd.training.build import Parts, build_parts, describe
from ssd.training.datasets import plain_samples, train_batches
from ssd.training.evaluating import evaluate_photos
from ssd.training.progress import duration
from ssd.training.run import Run

STEPS = 3


def dry_run(run: Run) -> None:
    """Does what training does, for a few steps, and tells what the whole of it will take. Writes nothing."""
    parts = build_parts(run, None)
    describe(run, parts, 0)
    a_step = _seconds_a_step(run, parts)
    an_evaluation = _seconds_an_evaluation(run, parts)
    iterations = parts.schedule.iterations
    evaluations = -(-iterations // parts.schedule.eval_every)
    if run.device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU's memory"
    else:
        memory = f"{memory_in_use() / 2**30:.1f} GiB of memory"
    cache = parts.samples.cache
    more = f", and in the course of the run {cache.bytes / 2**30:.1f} GiB more for data.cache: ram" if cache else ""
    run.say(f"a step takes {a_step:.2f} s ({run.batch_size / a_step:.1f} images/s) and {memory}{more}")
    whole = duration(iterations * a_step + evaluations * an_evaluation)
    run.say(f"the run will take about {whole}: {iterations} steps and {evaluations} evaluations")


def _seconds_a_step(run: Run, parts: Parts) -> float:
    batches = iter(train_batches(run, parts.samples, STEPS + 1, 0))
    start = 0.0
    for number in range(STEPS + 1):
        if number == 1:  # the first one warms up
            start = time.perf_counter()
        if run.stop():
            raise Stopped(run.stop.signal)
        taken = parts.step([next(batches) for _ in range(parts.schedule.accumulate)], 0)
        float(taken.losses.sum())  # waits for the device
    return (time.perf_counter() - start) / STEPS


def _seconds_an_evaluation(run: Run, parts: Parts) -> float:
    """Of all validation photos, by the time that some of them take."""
    photos = parts.val_samples.photos
    some = photos.select(range(min(len(photos), 2 * run.config.eval.batch_size)))
    evaluation = evaluate_photos(run, plain_samples(run, some, parts.preparation), parts.preparation, parts.model)
    return evaluation.seconds / len(some) * len(photos)
