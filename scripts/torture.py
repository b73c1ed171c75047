"""Kill real training runs at random moments and resume them: python scripts/torture.py --kills 20

Four kinds of run (float32 and bfloat16, with and without loader workers and accumulation) are trained twice: once without
interruption, and once with SIGKILLs at random moments during start-up, steps, checkpoints and evaluations. Weights, optimiser
and metrics.jsonl must be equal bit for bit, except for the timing fields.
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
START_UP = 3.0  # approximate seconds before the first step
TIMING = ("images_per_s", "data_wait")


@command()
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--kills", type=whole_number(1), default=20, help="total number of kills (default: 20)")
    parser.add_argument("--iterations", type=whole_number(1), default=40, help="length of each run (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    options = parser.parse_args(arguments)

    from data.shapes import write_shapes

    moments = random.Random(options.seed)
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
                train_command(config, kind, killed), killed, kills, options.iterations, length / options.iterations, moments
            )
            differences += [f"{killed.name}: {text}" for text in compare(uninterrupted, killed)]
    print(f"{survived}/{options.kills} kills survived; weights and metrics {'differ' if differences else 'equal'}")
    for text in differences:
        print(f"  {text}")
    return int(bool(differences) or survived < options.kills)


def write_config(folder: Path, iterations: int) -> Path:
    """Write the configuration of a tiny run that saves at every step, and return its path."""
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
    path.write_text(json.dumps(values))  # JSON is valid YAML
    return path


def train_command(config: Path, kind: dict[str, Any], output: Path) -> list[str]:
    overrides = [f"{key}={value}" for key, value in kind.items()]
    return [sys.executable, "train.py", "--config", str(config), "--resume", "auto", *overrides, f"output_dir={output}"]


def finish(arguments: list[str]) -> None:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; with its output.
    """
    done = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"the run failed with exit code {done.returncode}:\n{done.stdout}")


def kill_often(arguments: list[str], output: Path, kills: int, iterations: int, pace: float, moments: random.Random) -> int:
    """Start a run and kill it, `kills` times, then let it finish. Return how many kills it survived.

    A run that ends before its kill starts again from the beginning. `pace` is the seconds per iteration of the uninterrupted
    run, including its start-up.
    """
    survived = 0
    while survived < kills:
        delay = moments.uniform(0, START_UP + pace * (iterations - iterations_done(output)))
        # Half of the kills include the loader's workers, as a scheduler's do; the others leave them orphaned.
        whole_group = moments.random() < 0.5
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
                    f"  kill {survived}/{kills} after {delay:.2f} s, {iterations_done(output)} iterations on disk", flush=True
                )
            elif code:
                print(f"  resuming after {survived} kills failed with exit code {code}:\n{log.read()}", flush=True)
                return survived - 1  # the last kill was not survived
            else:
                print("  ended before its kill; starting again", flush=True)
                shutil.rmtree(output)
    finish(arguments)
    return survived


def iterations_done(output: Path) -> int:
    """Return the iteration of last.pt, or 0."""
    from ssd.weights.checkpoint import CheckpointError, load_checkpoint

    try:
        return load_checkpoint(output / "checkpoints" / "last.pt").iteration
    except CheckpointError:
        return 0


def compare(one: Path, other: Path) -> list[str]:
    """List the differences between two finished runs."""
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
    """Return the records without their timing fields."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]


if __name__ == "__main__":
    sys.exit(main())
