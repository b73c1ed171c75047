"""train.py as a user runs it: real processes on real files."""

import math
import os
import re
import signal

import pytest
import yaml

import train
from data.shapes import CLASSES, write_shapes
from ssd.weights.checkpoint import load_checkpoint
from tests.helpers.paths import ROOT
from tests.helpers.processes import completed, start
from tests.helpers.runs import TWO_PROCESSES, assert_same_weights, command, events, records, run, without_timing, write_config


def test_a_run_writes_its_files_and_can_be_evaluated_again(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, eval={"every": 4, "batch_size": 4})
    done = run(config)
    folder = tmp_path / "run"
    summary = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"mAP@0\.5 \(VOC07 11-point\) \d\.\d{4}", summary)
    for name in CLASSES:
        assert re.search(rf"^{name} .*\d", done.stdout, re.MULTILINE)
    assert "images/s" in done.stdout
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "last.pt", "best.pt", "iteration_00000004.pt", "iteration_00000008.pt"
    }  # fmt: skip
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["batch_size"] == 4
    assert (folder / "detections.png").stat().st_size > 1000
    board = events(folder)
    shown = {f"train/{name}" for name in ("loss", "loss_l", "loss_c", "grad_norm", "lr", "images_per_s", "data_wait")}
    assert shown | {"eval/map", "eval/ap/circle", "eval/loss", "eval/loss_l", "eval/loss_c"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Images("augmented samples")] == [0]
    assert [event.step for event in board.Images("validation photos")] == [4, 8, 9]
    assert [event.step for event in board.Tensors("precision-recall/circle")] == [4, 8, 9]
    steps = records(tmp_path)
    assert [(record["iteration"], record["epoch"]) for record in steps] == [(2, 1), (4, 1), (6, 1), (8, 2), (9, 2)]
    for record in steps:
        assert record.keys() == {
            "kind", "epoch", "iteration", "loss", "loss_l", "loss_c", "grad_norm", "lr", "images_per_s", "data_wait"
        }  # fmt: skip
        assert record["loss"] == pytest.approx(record["loss_l"] + record["loss_c"])
        assert 0 <= record["data_wait"] <= 1
    evaluations = records(tmp_path, "eval")
    assert [record["iteration"] for record in evaluations] == [4, 8, 9]
    assert all(record["loss"] == pytest.approx(record["loss_l"] + record["loss_c"]) for record in evaluations)
    assert evaluations[-1]["metric"] == "VOC07 11-point"
    assert set(evaluations[-1]["ap"]) == set(CLASSES)

    best = re.search(r"checkpoints/best\.pt, iteration (\d+):$", done.stdout.splitlines()[-2])
    again = run(config, "--eval-only", "--resume", str(folder / "checkpoints/best.pt"))
    assert again.stdout.splitlines()[-1] == summary
    assert f"iteration {best[1]}" in again.stdout
    assert "iteration 9" in run(config, "--eval-only", "--resume", str(folder / "checkpoints/last.pt")).stdout
    (refused,) = run(config, code=2).stderr.splitlines()
    assert "--resume auto" in refused
    finished = run(config, "--resume", "auto")
    assert "nothing left to train" in finished.stdout
    assert finished.stdout.splitlines()[-1] == summary
    assert len(records(tmp_path)) == 5
    assert "classes" in run(config, "--resume", "auto", "data.classes=[a,b]", code=2).stderr
    assert "another model" in run(config, "--resume", "auto", "model.width=0.2", code=2).stderr


BFLOAT16_SGD = {"precision": "bfloat16", "optimizer": "sgd", "batch_size": 2}


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (signal.SIGTERM, {"train": {"accumulate": 2, "ema": 0.9}, "data": {"workers": 0}}),
        (signal.SIGINT, {"train": BFLOAT16_SGD, "data": {"cache": "ram", "workers": 2}}),
    ],
    ids=["term-float32-accumulated-averaged", "int-bfloat16-sgd-cached"],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path, shapes_root, number, changes):
    changes = {**changes, "train": {**changes["train"], "iterations": 14}, "eval": {"every": 6}}
    whole, parts = (write_config(tmp_path / name, shapes_root, **changes) for name in ("whole", "parts"))
    run(whole)
    process = start(command(parts), cwd=ROOT, start_new_session=True)
    for line in process.stdout:
        if line.startswith("epoch "):
            os.killpg(process.pid, number)  # like a terminal, which also signals the workers
            break
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    assert "--resume auto" in stdout
    stopped_at = load_checkpoint(tmp_path / "parts/run/checkpoints/last.pt").iteration
    assert 2 <= stopped_at < 14
    done = run(parts, "--resume", "auto")
    assert f"iteration {stopped_at}" in done.stdout
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert without_timing(tmp_path / "whole") == without_timing(tmp_path / "parts")


def test_one_process_two_processes_and_accumulation_follow_the_same_losses(tmp_path, shapes_root):
    sgd = {"iterations": 20, "optimizer": "sgd", "lr": 1e-4}
    options = {"model": {"batch_norm": "none"}, "train": sgd, "log_every": 1}
    one, two, accumulated = (write_config(tmp_path / name, shapes_root, **options) for name in ("one", "two", "accumulated"))
    run(one)
    run(accumulated, "train.accumulate=2")
    words = [*TWO_PROCESSES, *command(two)[1:]]
    done = completed(words, timeout=300, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mAP@0.5") == 2  # after the evaluation and in the last line, by only one process
    expected = [record["loss"] for record in records(tmp_path / "one")]
    assert len(expected) == 20
    for name in ("two", "accumulated"):
        losses = [record["loss"] for record in records(tmp_path / name)]
        assert losses == pytest.approx(expected, rel=1e-4), name
    maps = [records(tmp_path / name, "eval")[-1]["map"] for name in ("one", "two")]
    assert maps[0] == pytest.approx(maps[1], abs=0.02)
    for kind, name in (("eval", "loss"), ("train", "grad_norm")):
        values = [[record[name] for record in records(tmp_path / folder, kind)] for folder in ("one", "two", "accumulated")]
        assert values[1] == pytest.approx(values[0], rel=1e-3)
        assert values[2] == pytest.approx(values[0], rel=1e-3)


def test_training_learns(tmp_path):
    write_shapes(tmp_path / "shapes", num_train=4, num_val=1, seed=3)
    config = write_config(
        tmp_path, tmp_path, data={"val": [{"path": "shapes", "split": "train"}]}, model={"width": 0.1},
        augment={"photometric": False, "expand": False, "crop": False, "mirror": False},
        train={"iterations": 60, "lr": 3e-3, "warmup": 10, "schedule": "cosine", "precision": "auto"},
    )  # fmt: skip
    values = yaml.safe_load(config.read_text())
    run(config)
    assert values["data"]["train"] == values["data"]["val"]
    assert records(tmp_path, "eval")[-1]["map"] > 0.9


def test_a_non_finite_loss_stops_the_run(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, train={"optimizer": "sgd", "lr": 1e30, "warmup": 0}, checkpoint={"every": 1})
    done = run(config, code=1)
    (line,) = done.stderr.splitlines()
    assert "the loss or its gradient is not finite" in line
    assert re.search(r"\d{6}\.jpg", line)
    state = load_checkpoint(tmp_path / "run/checkpoints/last.pt") if (tmp_path / "run/checkpoints/last.pt").exists() else None
    assert state is None or all(value.isfinite().all() for value in state.model.values())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train.lr=fast"], "train.lr: expected a number > 0, got 'fast'"),
        (["train.lrr=1"], "did you mean train.lr?"),
        (["data.root=/nowhere"], "no such folder"),
        (["data.classes=[circle,square,triangle,star]"], "unknown class 'cross'"),
        (["device=cuda:99"], "device"),
        (["train.precision=float16"], "float16 needs a GPU"),
        (["model.pretrained=none.pth", "model.width=1.0"], "no such file"),
        (["--resume", "none.pt"], "no such checkpoint"),
        (["--eval-only"], "no checkpoint to evaluate"),
        (["train.accumulate=4", "train.batch_size=6"], "not a multiple of accumulate"),
    ],
)
@pytest.mark.usefixtures("restored_signals")
def test_user_errors_are_one_line(tmp_path, shapes_root, arguments, expected, capsys):
    assert train.main(["--config", str(write_config(tmp_path, shapes_root)), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(expected in line for line in lines), lines
    assert all(line.startswith("error: ") for line in lines)


def test_compiling_needs_a_compiler(tmp_path, shapes_root, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = run(write_config(tmp_path, shapes_root, train={"compile": True}), code=2)
    assert done.stderr.splitlines() == ["error: train.compile: needs a C++ compiler; install one, or set CXX"]


def test_classes_without_objects_are_excluded_from_the_mean_and_named(tmp_path, shapes_root):
    config = write_config(tmp_path, shapes_root, data={"classes": [*CLASSES, "zebra"]}, train={"iterations": 2})
    done = run(config)
    assert "data.train has no object of class 'zebra'" in done.stdout
    assert re.search("not in the mean, since they have no objects here: .*zebra", done.stdout)
    evaluation = records(tmp_path, "eval")[-1]
    assert evaluation["ap"]["zebra"] is None
    assert math.isfinite(evaluation["map"])
