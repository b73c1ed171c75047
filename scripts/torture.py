"""Kills a real training at random instants and resumes it, again and again: python scripts/torture.py --kills 20

Each of four kinds of run (float32 and bfloat16, with and without loader workers and accumulation) is trained once without
kills, and once with SIGKILLs at instants drawn at random over its whole length: start-up, steps, checkpoints, evaluations. At
the end weights, optimiser and metrics.jsonl have to equal those of the uninterrupted run, bit for bit, timing fields aside.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ssd.system.arguments import Parser, whole_number
from ssd.system.command import command

ROOT = Path(__file__).resolve().parent.parent
KINDS = (
    {"train.precision": "float32", "data.workers": 0, "train.accumulate": 1},
    {"train.precision": "bfloat16", "data.workers": 2, "train.accumulate": 1},
    {"train.precision": "float32", "data.workers": 2, "train.accumulate": 2},
    {"train.precision": "bfloat16", "data.workers": 0, "train.accumulate": 2},
)
START_UP = 3.0  # seconds, about, before the first step
TIMING = ("images_per_s", "data_wait")


@command()
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--kills", type=whole_number(1), default=20, help="how many in all (default: 20)")
    parser.add_argument("--iterations", type=whole_number(1), default=40, help="length of each run (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args(arguments)

    from data.shapes import write_shapes

    instants = random.Random(options.seed)
    survived, differences = 0, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shapes(folder / "shapes", num_train=24, num_val=8, seed=1)
        for number, kind in enumerate(KINDS):
            kills = len(range(number, options.kills, len(KINDS)))
            if not kills:
                continue
            print(f"{' '.join(f'{key}={value}' for key, value in kind.items())}", flush=True)
            config = write_config(folder, options.iterations)
            uninterrupted, killed = folder / f"{number}_uninterrupted", folder / f"{number}_killed"
            start = time.monotonic()
            finish(train_command(config, kind, uninterrupted))
            length = time.monotonic() - start
            survived += kill_often(
                train_command(config, kind, killed), killed, kills, options.iterations, length / options.iterations, instants
            )
            differences += [f"{killed.name}: {text}" for text in compare(uninterrupted, killed)]
    print(f"{survived}/{options.kills} kills survived; weights and metrics {'differ' if differences else 'equal'}")
    for text in differences:
        print(f"  {text}")
    return int(bool(differences) or survived < options.kills)


def write_config(folder: Path, iterations: int) -> Path:
    """A run so small that many of them fit into minutes, which saves at every step."""
    from data.shapes import CLASSES

    values: dict[str, Any] = {
        "device": "cpu",
        "data": {
            "classes": list(CLASSES),
            "root": str(folder),
            "train": [{"path": "shapes", "split": "train"}],
            "val": [{"path": "shapes", "split": "val"}],
        },
        "model": {"pretrained": "none", "batch_norm": "backbone", "width": 0.05},
        "train": {"batch_size": 4, "iterations": iterations, "optimizer": "adamw", "warmup": 2, "ema": 0.9},
        "log_every": 3,
        "checkpoint": {"every": 1, "keep": 2},
        "eval": {"every": 5, "batch_size": 4},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(values))  # which is YAML too
    return path


def train_command(config: Path, kind: dict[str, Any], output: Path) -> list[str]:
    overrides = [f"{key}={value}" for key, value in kind.items()]
    return [sys.executable, "train.py", "--config", str(config), "--resume", "auto", *overrides, f"output_dir={output}"]


def finish(arguments: list[str]) -> None:
    """Runs to the end.

    Raises:
        SystemExit: the run failed; with what it said.
    """
    done = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"the run failed with exit code {done.returncode}:\n{done.stdout}")


def kill_often(arguments: list[str], output: Path, kills: int, iterations: int, pace: float, instants: random.Random) -> int:
    """Starts the run, kills it, and starts it again, `kills` times, then lets it finish; the number of kills survived.

    A run that ends before its kill is followed by another one, from the start.

    Args:
        arguments: the command.
        output: its output folder.
        kills: how many.
        iterations: length of the run.
        pace: seconds of the uninterrupted run for each of its iterations, start-up included.
        instants: where the instants come from.
    """
    survived = 0
    while survived < kills:
        delay = instants.uniform(0, START_UP + pace * (iterations - iterations_done(output)))
        # Half of the kills take the loader's workers along, as a scheduler's do; the other half leave them orphaned.
        whole_group = instants.random() < 0.5
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(delay)
            except subprocess.TimeoutExpired:
                (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
                code = process.wait()
            log.seek(0)
            if code == -signal.SIGKILL:
                survived += 1
                print(
                    f"  kill {survived}/{kills} after {delay:.2f} s, {iterations_done(output)} iterations safe on disk",
                    flush=True,
                )
            elif code:
                print(f"  a start after {survived} kills failed with exit code {code}:\n{log.read()}", flush=True)
                return survived - 1  # the last kill was not survived
            else:
                print("  ended before its kill; once more from the start", flush=True)
                shutil.rmtree(output)
    finish(arguments)
    return survived


def iterations_done(output: Path) -> int:
    """How far the run got."""
    from ssd.weights.checkpoint import CheckpointError, load_checkpoint

    try:
        return load_checkpoint(output / "checkpoints" / "last.pt").iteration
    except CheckpointError:
        return 0


def compare(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs."""
    from ssd.weights.checkpoint import digest, load_checkpoint

    differences = []
    for name in ("last.pt", "best.pt"):
        first, second = (load_checkpoint(folder / "checkpoints" / name) for folder in (one, other))
        for part in ("model", "optimizer", "average", "iteration", "best_map", "evaluated_at"):
            if digest(getattr(first, part)) != digest(getattr(second, part)):
                differences.append(f"{name}: {part}")
    if records(one) != records(other):
        differences.append("metrics.jsonl")
    return differences


def records(folder: Path) -> list[dict[str, Any]]:
    """The records without what differs between any two runs."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]


if __name__ == "__main__":
    sys.exit(main())
