"""Small runs on the shapes data set: their configurations, the command, and what they write."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from data.shapes import CLASSES
from ssd.config.file import parse_config
from ssd.training.run import Run
from ssd.training.schedule import Schedule
from ssd.weights.checkpoint import load_checkpoint
from tests.helpers.paths import ROOT
from tests.helpers.processes import completed

TIMING = ("images_per_s", "data_wait")
SMALL = {"model": {"width": 0.05}, "data": {"workers": 0}, "checkpoint": {"every": 100, "keep": 1}, "log_every": 1}
TWO_PROCESSES = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LONG = {"train": {"batch_size": 4, "iterations": 5000, "lr": 1e-3, "optimizer": "adamw", "precision": "float32"}}


def write_config(folder: Path, shapes_root: Path, **changes: dict[str, Any]) -> Path:
    """Write the configuration of a small run: 24 photos in batches of 4, a twentieth of the channels."""
    values: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "device": "cpu",
        "data": {
            "classes": list(CLASSES),
            "root": str(shapes_root),
            "train": [{"path": "shapes", "split": "train"}],
            "val": [{"path": "shapes", "split": "val"}],
            "workers": 1,
        },
        "model": {"pretrained": "none", "batch_norm": "backbone", "width": 0.05},
        "train": {"batch_size": 4, "iterations": 9, "optimizer": "adamw", "lr": 1e-3, "warmup": 2, "precision": "float32"},
        "log_every": 2,
        "checkpoint": {"every": 4, "keep": 2},
        "eval": {"every": 100, "batch_size": 4},
    }
    for section, entries in changes.items():
        values[section] = {**values.get(section, {}), **entries} if isinstance(entries, dict) else entries
    path = folder / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "--config", str(config), *arguments]


def run(config: Path, *arguments: str, code: int = 0) -> CompletedProcess[str]:
    done = completed(command(config, *arguments), timeout=300, cwd=ROOT)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def records(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def events(folder: Path) -> EventAccumulator:
    """Return what TensorBoard reads in the folder of a run."""
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return board


def without_timing(folder: Path) -> list[dict[str, Any]]:
    every = records(folder) + records(folder, "eval")
    return [{key: value for key, value in record.items() if key not in TIMING} for record in every]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_checkpoint(folder / "run/checkpoints/last.pt") for folder in (one, other))
    assert first.iteration == second.iteration
    assert first.model.keys() == second.model.keys()
    for name, value in first.model.items():
        assert torch.equal(value, second.model[name]), name


def small(folder: Path, shapes_root: Path, **changes: object) -> Path:
    length = {"iterations": 3, "batch_size": 2}
    merged = {"train": length, "eval": {"every": 1, "batch_size": 8}, **SMALL}
    return write_config(folder, shapes_root, **{**merged, **{k: {**merged.get(k, {}), **v} for k, v in changes.items()}})


def trained(folder: Path, shapes_root: Path, **changes: object) -> Path:
    """Write the configuration of a short run, and train in this process."""
    config = small(folder, shapes_root, **changes)
    assert train.main(["--config", str(config)]) == 0
    return config


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def run_of(**sections: Any) -> Run:
    """Return a run of a tiny network that reads no data."""
    source = [{"path": "shapes"}]
    data = {"train": source, "val": source, "classes": ["cat", "dog"]}
    return Run.alone(parse_config({"data": data, "model": {"pretrained": "none", "width": 0.05}, **sections}))


def schedule_of(num_samples: int = 8, eval_every: int = 100, **train: Any) -> Schedule:
    """Return a schedule of 100 iterations at a constant learning rate of 0.1, with changes."""
    given = {"batch_size": 4, "iterations": 100, "lr": 0.1, "warmup": 0, "milestones": [], **train}
    return Schedule(run_of(train=given).config.train, eval_every, num_samples)
