"""Benchmarks of train.py as users run it."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.measuring import OURS, Row, Runs, Setting, measure, real_batch, rows
from ssd.system.distributed import World
from ssd.system.stop import StopRequest
from ssd.training.build import build_model, build_step, build_teacher
from ssd.training.run import Run
from ssd.training.schedule import Schedule


def bench_train(setting: Setting, batch_size: int) -> list[Row]:
    """Measure the real command with one loader worker. Floor: its step on one batch in memory."""
    config, photos = setting.config, setting.photos
    steps = 4 * setting.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = real_command(setting, folder, batch_size, f"train.iterations={3 * steps}", f"log_every={steps}")
        run = Run(config, World(), setting.device, setting.dtype, folder / "step", StopRequest())
        model, preprocessing = build_model(run, None)
        schedule = Schedule(config.train, config.eval.every, len(photos))
        step = build_step(run, model, preprocessing, schedule, build_teacher(run))
        batch = real_batch(photos, batch_size)
        own_step: Runs = {"step": lambda: step([batch], 0)}
        before = measure(own_step, setting, steps)["step"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = measure(own_step, setting, steps)["step"]
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"][1:]  # the first one warms up
    rate = statistics.median(record["images_per_s"] for record in records)
    waited = statistics.median(record["data_wait"] for record in records)
    case = f"train, batch {batch_size} ({waited:.1%} of the time waiting for data)"
    return rows(case, batch_size, "images/s", {OURS: batch_size / rate, "floor: its step alone": (before + after) / 2})


def bench_start(setting: Setting, batch_size: int) -> list[Row]:
    """Measure from the start of the command to the end of its first step, on one photo: an upper bound of the start-up time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = real_command(setting, folder, 1, "train.iterations=1", "log_every=1")
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            with subprocess.Popen([*command, "--overwrite"], stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout or ():
                    if line.startswith("epoch"):
                        seconds.append(time.perf_counter() - start)
                        break
                process.communicate()
    num_photos = len(setting.photos)
    return rows(f"start-up, {num_photos} annotations", num_photos, "annotations/s", {OURS: statistics.median(seconds)})


def real_command(setting: Setting, folder: Path, batch_size: int, *overrides: str) -> list[str]:
    """Return the command that trains on the configuration's photos and, at the end, evaluates on only eight of them."""
    paths = [Path(setting.photos.path(i)).resolve() for i in range(min(8, len(setting.photos)))]
    (folder / "few" / "ImageSets" / "Main").mkdir(parents=True)
    for part in ("JPEGImages", "Annotations"):
        (folder / "few" / part).symlink_to(paths[0].parent.parent / part)
    (folder / "few" / "ImageSets" / "Main" / "few.txt").write_text("\n".join(path.stem for path in paths))
    return [
        sys.executable, "train.py", *setting.arguments, f"device={setting.device.type}",
        f"data.val=[{{path: {folder / 'few'}, split: few}}]", "data.workers=1", f"train.batch_size={batch_size}",
        f"train.compile={str(setting.compiled).lower()}", f"output_dir={folder / 'run'}", *overrides,
    ]  # fmt: skip
