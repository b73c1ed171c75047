"""Early stopping, a time limit, and a run that only tells what it would do."""

import json
import re

import yaml

from ssd.system import memory
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.test_survival import LONG
from tests.test_train import assert_same_weights, records, run, write_config
from train import main


def test_patience_ends_a_run_that_does_not_improve(tmp_path, shapes_root):
    train = {"batch_size": 4, "iterations": 50, "lr": 1e-12, "optimizer": "sgd"}
    model = {"batch_norm": "none"}  # whose statistics would move without any learning
    evaluation = {"every": 2, "patience": 2, "batch_size": 8}
    config = write_config(tmp_path, shapes_root, train=train, eval=evaluation, model=model)
    done = run(config)
    assert "eval.patience: no better evaluation in 2; training ends at iteration 6" in done.stdout
    assert [record["iteration"] for record in records(tmp_path, "eval")] == [2, 4, 6]
    assert done.stdout.splitlines()[-1].startswith("mAP@0.5")
    assert (tmp_path / "run/report.html").exists()
    # A resumed run knows that it was over, and continues when it is given more patience.
    assert "training ends at iteration 6" in run(config, "--resume", "auto").stdout
    run(config, "--resume", "auto", "eval.patience=3")
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration == 8


def test_a_time_limit_saves_and_ends(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, **LONG, checkpoint={"every": 10_000, "keep": 1})
    done = run(config, "train.max_hours=0.004")
    assert done.stdout.splitlines()[-1] == "train.max_hours are over; resume with --resume auto"
    iteration = load_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration
    assert iteration > 0
    assert (
        f"resuming from {tmp_path}/run/checkpoints/last.pt, iteration {iteration}"
        in run(config, "--resume", "auto", f"train.iterations={iteration + 1}").stdout
    )


def test_a_dry_run_writes_nothing(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root)
    done = run(config, "--dry-run")
    assert re.search(r"a step takes \d+\.\d\d s \(.* images/s\) and \d+\.\d GiB of memory", done.stdout)
    assert re.search(r"the run will take about 0:00:\d\d: 9 steps and 1 evaluations", done.stdout)
    assert not (tmp_path / "run").exists()


def test_a_fraction_of_the_photos(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root)
    shown = run(config, "--dry-run", "data.fraction=0.5").stdout
    count = int(re.search(r"data: (\d+) photos", shown)[1])
    assert 4 < count < 20
    assert json.dumps(count) in shown


def test_the_batch_that_the_memory_holds(tmp_path, shapes_root, monkeypatch, capsys):
    model, train = {"batch_norm": "none"}, {"iterations": 1, "batch_size": "auto"}
    alone = write_config(tmp_path / "alone", shapes_root, model=model, train={**train, "batch_size": 32})
    run(alone)
    config = write_config(tmp_path / "auto", shapes_root, model=model, train=train)
    assert "train.batch_size: auto: 32 photos in 1 step(s) of 32" in run(config).stdout
    assert_same_weights(tmp_path / "alone", tmp_path / "auto")  # the steps that tried it have left no trace
    small = write_config(tmp_path / "small", shapes_root, model=model, train=train)
    monkeypatch.setattr(memory, "free_memory", lambda: 2**28)
    assert main(["--config", str(small)]) == 0
    steps = int(re.search(r"auto: 32 photos in (\d+) step", capsys.readouterr().out)[1])
    assert steps > 1
    resolved = yaml.safe_load((tmp_path / "small/run/config.yaml").read_text())["train"]
    assert (resolved["batch_size"], resolved["accumulate"]) == (32, steps)
    monkeypatch.undo()
    # A resumed run continues as it began, whatever the memory is now.
    assert "iteration 1" in run(small, "--resume", "auto", "train.iterations=2").stdout
    assert load_checkpoint(tmp_path / "small/run/checkpoints/last.pt").config["train"]["accumulate"] == steps
    assert run(small, "--eval-only").stdout.splitlines()[-1].startswith("mAP@0.5")
    state = load_checkpoint(tmp_path / "small/run/checkpoints/last.pt")
    state.config = {"model": state.config["model"]}  # as converted weights have it
    save_checkpoint(tmp_path / "converted.pt", state)
    assert "mAP@0.5" in run(small, "--eval-only", "--resume", str(tmp_path / "converted.pt")).stdout
    monkeypatch.setattr(memory, "free_memory", lambda: 2**10)
    assert main(["--config", str(small), "--overwrite"]) == 2
    assert "train.batch_size: auto: a step on a single photo takes more" in capsys.readouterr().err
    # Nothing is overwritten before all is well.
    assert load_checkpoint(tmp_path / "small/run/checkpoints/last.pt").iteration == 2
