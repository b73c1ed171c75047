"""All cases by name, and the setting that they share."""

import argparse
from collections.abc import Callable

import cv2

from data.dataset.annotation_loader import load_annotations
from scripts.benchmarks.architectures import Comparison, as_table, bench_architectures
from scripts.benchmarks.command import bench_start, bench_train
from scripts.benchmarks.data import bench_data, bench_loader
from scripts.benchmarks.detection import bench_detect
from scripts.benchmarks.loss import bench_loss
from scripts.benchmarks.measuring import Row, Setting
from scripts.benchmarks.metric import bench_eval
from scripts.benchmarks.predict import bench_predict
from scripts.benchmarks.step import bench_step
from ssd.config import Config
from ssd.system.device import choose_device, choose_precision
from ssd.system.machine import require_cpp_compiler

CASES: dict[str, Callable[[Setting, int], list[Row] | list[Comparison]]] = {
    "data": bench_data,
    "step": bench_step,
    "loss": bench_loss,
    "predict": bench_predict,
    "detect": bench_detect,
    "eval": bench_eval,
    "train": bench_train,
    "start": bench_start,
    "loader": bench_loader,
    "architectures": bench_architectures,
}


def show(measured: list[Row] | list[Comparison]) -> None:
    """Print the measurements of one call of a case."""
    if comparisons := [one for one in measured if isinstance(one, Comparison)]:
        print(f"\n{as_table(comparisons)}", flush=True)
    rows = [one for one in measured if isinstance(one, Row)]
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous is None or previous.case != row.case:
            print(f"\n{row.case}")
        figures = f"{row.seconds * 1e3:10.1f} ms  {row.rate:9.1f} {row.unit:13}  ours is ×{row.ratio:.2f}"
        print(f"  {row.variant:46}  {figures}{', its best' if row.is_best else ''}", flush=True)


def make_setting(config: Config, options: argparse.Namespace) -> Setting:
    """Return the setting of all cases from the command's options.

    Raises:
        ConfigError: the device or a compiler is missing.
        DataError: the photos cannot be used.
    """
    device = choose_device(options.device)
    if options.compile and device.type == "cpu":
        require_cpp_compiler("--compile")
    photos = load_annotations(config.data, "train", config.seed).photos
    cv2.setNumThreads(0)
    return Setting(
        config=config,
        photos=photos,
        device=device,
        dtype=choose_precision("auto", device),
        rounds=options.rounds,
        compiled=options.compile,
        profiled=options.profile,
        same_allocator=options.same_allocator,
        arguments=["--config", options.config, *options.overrides],
    )
