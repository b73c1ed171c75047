"""Variance of mAP: the same run with several seeds, or on each of several folds of the photos."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ssd.evaluation.metrics import METRICS
from ssd.system.files import write_text
from ssd.training.checkpoints import BEST
from ssd.training.run import Run
from ssd.training.validate import Best


class Spread(NamedTuple):
    """How the results of several runs differ; NaN where no run has one."""

    mean: float
    std: float  # of a sample: divided by n - 1
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        """Return the spread of values; None for a run in which a class has no objects."""
        known = np.array([value for value in values if value is not None])
        if not len(known):
            return cls(*[float("nan")] * 4)
        std = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
        return cls(float(known.mean()), std, float(known.min()), float(known.max()))

    def row(self) -> str:
        return "  ".join("     –" if np.isnan(value) else f"{value:6.4f}" for value in self)

    def to_plain(self) -> dict[str, float | None]:
        return {name: None if np.isnan(value) else value for name, value in self._asdict().items()}


def make_runs(run: Run, num_seeds: int | None, num_folds: int | None) -> list[Run]:
    """Return the runs to compare, each with a folder of its own in the run's folder; without numbers, the run alone.

    Args:
        run: the run.
        num_seeds: runs with seeds from the configuration's on.
        num_folds: runs, one for each fold.
    """
    config = run.config
    changes: dict[str, dict[str, Any]] = {}
    for seed in range(config.seed, config.seed + (num_seeds or 0)):
        changes[f"seed_{seed}"] = {"seed": seed}
    for number in range(1, (num_folds or 0) + 1):
        data = config.data.model_copy(update={"fold": f"{number}/{num_folds}"})
        changes[f"fold_{number}_of_{num_folds}"] = {"data": data}
    runs = []
    for name, change in changes.items():
        folder = run.folder / name
        runs.append(replace(run, config=config.model_copy(update={**change, "output_dir": str(folder)}), folder=folder))
    return runs or [run]


def carry_out(run: Run, runs: Sequence[Run], task: Callable[[Run], Best]) -> None:
    """Carry out several runs, one after the other, and print and write the variance of their results.

    Args:
        run: in whose folder the runs are.
        runs: from `make_runs`.
        task: trains or evaluates one.
    """
    metric = METRICS[run.config.eval.metric]
    done: list[dict[str, Any]] = []
    for number, each in enumerate(runs, 1):
        each.say(f"run {number} of {len(runs)}: {each.folder}")
        iteration, evaluation = task(each)
        record = evaluation.record()
        done.append({"folder": each.folder.name, "iteration": iteration, "map": record["map"], "ap": record["ap"]})
        if run.world.is_main:
            _write(run.folder / "variance.json", metric.name, len(runs), done)
        if each.config.train.compile:
            torch.compiler.reset()  # the compiler keeps what it compiled for a few networks only
    ap, mean_ap = _spreads(done)
    width = max(map(len, [*ap, "mAP"]))
    rows = [f"{name:{width}}  {spread.row()}" for name, spread in [*ap.items(), ("mAP", mean_ap)]]
    best = max(done, key=lambda each: -1 if each["map"] is None else each["map"])
    run.say("\n".join([f"{'':{width}}    mean     std     min     max", *rows]))
    run.say(f"table: {run.folder / 'variance.json'}")
    run.say(f"highest mAP: {run.folder / best['folder'] / 'checkpoints' / BEST}, iteration {best['iteration']}")
    run.say(f"mean of {len(runs)} runs:\n{metric.title} {mean_ap.mean:.4f}")


def _spreads(done: Sequence[dict[str, Any]]) -> tuple[dict[str, Spread], Spread]:
    """Return the spread of each class's AP, and that of mAP."""
    ap = {name: Spread.of([each["ap"][name] for each in done]) for name in done[0]["ap"]}
    return ap, Spread.of([each["map"] for each in done])


def _write(path: Path, metric: str, num_runs: int, done: Sequence[dict[str, Any]]) -> None:
    """Write the results of the runs so far."""
    ap, mean_ap = _spreads(done)
    spreads = {"map": mean_ap.to_plain(), "ap": {name: spread.to_plain() for name, spread in ap.items()}}
    content = {"metric": metric, "num_runs": num_runs, **spreads, "runs": done}
    write_text(path, json.dumps(content, indent=2))
