"""Restarts and results of runs, with train.py in this process."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from data.shapes import CLASSES
from ssd.config.file import load_config
from ssd.evaluation.metrics import METRICS
from ssd.evaluation.report import write_report
from ssd.system.errors import Failure
from ssd.training import validate
from ssd.training.build import build_model, build_parts
from ssd.training.checkpoints import numbered_name
from ssd.training.datasets import load_data
from ssd.training.run import Run
from ssd.training.trainer import Trainer
from ssd.weights.checkpoint import load_checkpoint
from tests.helpers.runs import assert_same_weights, records, small, trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("restored_signals", "no_report")]


@pytest.fixture
def _report(no_report, monkeypatch):
    monkeypatch.setattr(validate, "write_report", write_report)


@pytest.fixture
def scores(monkeypatch):
    """A list of fake mAPs for the next evaluations. Once it is empty, the real ones count."""
    given: list[float] = []

    def scored(real, *args: object):
        result = real(*args)
        return replace(result, mean_ap=given.pop(0)) if given else result

    for name, metric in METRICS.items():
        monkeypatch.setitem(METRICS, name, metric._replace(compute=partial(scored, metric.compute)))
    return given


def at(folder: Path, name: str) -> int:
    return load_checkpoint(folder / "run/checkpoints" / f"{name}.pt").iteration


@pytest.mark.usefixtures("_report")
def test_the_summary_describes_the_best_checkpoint(tmp_path, shapes_root, scores, capsys):
    scores += [0.1, 0.3, 0.2]
    config = trained(tmp_path, shapes_root)
    shown = capsys.readouterr().out
    best = tmp_path / "run/checkpoints/best.pt"
    assert at(tmp_path, "best") == 2
    assert shown.splitlines()[-2:] == [f"{best}, iteration 2:", "mAP@0.5 (VOC07 11-point) 0.3000"]
    assert shown.count("photos in ") == 3  # the tables of three evaluations; the best one is not repeated
    assert "best.pt, iteration 2" in (tmp_path / "run/report.html").read_text()
    # A restart that did not run the best evaluation repeats it.
    scores += [0.25, 0.3]
    assert train.main(["--config", str(config), "--resume", "auto", "train.iterations=4"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{best}, iteration 2:", "mAP@0.5 (VOC07 11-point) 0.3000"]
    assert not scores


def test_without_an_evaluation_the_best_checkpoint_is_the_last_one(tmp_path, shapes_root, scores):
    scores += [np.nan]
    config = trained(tmp_path, shapes_root, checkpoint={"every": 1}, eval={"every": 100})  # evaluates once, without a number
    assert (at(tmp_path, "best"), at(tmp_path, "last")) == (3, 3)
    scores += [np.nan]
    assert train.main(["--config", str(config), "--resume", "auto", "train.iterations=5"]) == 0
    assert (at(tmp_path, "best"), at(tmp_path, "last")) == (5, 5)
    # Once there is a number, NaN is never better.
    scores += [0.3, np.nan, 0.2]
    assert train.main(["--config", str(config), "--resume", "auto", "train.iterations=8", "eval.every=1"]) == 0
    assert (at(tmp_path, "best"), at(tmp_path, "last")) == (6, 8)


@pytest.mark.parametrize("change", ["eval.metric=voc10", "data.val.0.split=train"])
def test_a_best_map_of_another_metric_or_split_does_not_count(tmp_path, shapes_root, scores, capsys, change):
    scores += [0.9, 0.8, 0.7]
    config = trained(tmp_path, shapes_root)
    assert at(tmp_path, "best") == 1
    scores += [0.2, 0.3]
    assert train.main(["--config", str(config), "--resume", "auto", "train.iterations=5", change]) == 0
    assert at(tmp_path, "best") == 5
    assert at(tmp_path, "best_until_00000003") == 1
    shown = capsys.readouterr().out
    assert f"{change.rpartition('.0')[0] or 'eval.metric'} changed: best.pt is chosen anew" in shown
    scores += [0.25]
    assert train.main(["--config", str(config), "--resume", "auto", "train.iterations=6", change]) == 0
    assert at(tmp_path, "best") == 5
    assert "chosen anew" not in capsys.readouterr().out


def test_the_first_record_after_a_restart_covers_the_steps_since_the_last_one(tmp_path, shapes_root):
    config = small(tmp_path, shapes_root, eval={"every": 100})
    assert train.main(["--config", str(config), "train.iterations=5", "log_every=4"]) == 0
    assert train.main(["--config", str(config), "--resume", "auto", "train.iterations=6", "log_every=10"]) == 0
    whole = small(tmp_path / "whole", shapes_root, eval={"every": 100})
    assert train.main(["--config", str(whole), "train.iterations=6", "log_every=1"]) == 0
    last, expected = records(tmp_path)[-1], records(tmp_path / "whole")[-1]
    assert (last["iteration"], expected["iteration"]) == (6, 6)
    # One step: the longer run changes the learning rates, but not yet the loss of step 6.
    assert last["loss"] == pytest.approx(expected["loss"], rel=0.2)


def test_two_runs_are_not_mixed(tmp_path, shapes_root, capsys):
    one, two = (small(tmp_path / name, shapes_root, train={"iterations": 1}) for name in ("one", "two"))
    assert train.main(["--config", str(one)]) == 0
    assert train.main(["--config", str(two)]) == 0
    last = tmp_path / "one/run/checkpoints/last.pt"
    before = (tmp_path / "two/run/checkpoints/best.pt").read_bytes()
    longer = ["--resume", str(last), "train.iterations=2"]
    capsys.readouterr()
    assert train.main(["--config", str(two), *longer]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "belongs to a different run than" in line
    assert "--overwrite" in line
    assert (tmp_path / "two/run/checkpoints/best.pt").read_bytes() == before
    # Accepted: the run's own folder, also with a copied checkpoint; an empty folder; or --overwrite.
    copy = tmp_path / "copy.pt"
    copy.write_bytes(last.read_bytes())
    assert train.main(["--config", str(one), "--resume", str(copy), "train.iterations=2"]) == 0
    assert train.main(["--config", str(one), *longer, f"output_dir={tmp_path / 'three/run'}"]) == 0
    assert at(tmp_path / "three", "best") == 2
    ids = [load_checkpoint(tmp_path / name / "run/checkpoints/last.pt").run_id for name in ("one", "two", "three")]
    assert len(set(ids)) == 3
    assert train.main(["--config", str(two), *longer[:2], "train.iterations=3", "--overwrite"]) == 0
    assert [record["iteration"] for record in records(tmp_path / "two")] == [3]


def test_resume_accepts_a_folder(tmp_path, shapes_root, capsys):
    config = trained(tmp_path, shapes_root, train={"iterations": 1})
    capsys.readouterr()
    for folder in (tmp_path / "run", tmp_path / "run/checkpoints"):
        assert train.main(["--config", str(config), "--eval-only", "--resume", str(folder)]) == 0
        assert f"evaluating {tmp_path}/run/checkpoints/last.pt, iteration 1" in capsys.readouterr().out
    assert train.main(["--config", str(config), "--resume", str(shapes_root)]) == 2
    assert f"{shapes_root}: contains no checkpoint; name a checkpoint" in capsys.readouterr().err
    assert train.main(["--config", str(config), "--resume", "auto", f"data.classes=[{','.join(CLASSES)},moon]"]) == 2
    assert "name it in model.init_from" in capsys.readouterr().err


def test_new_optimiser_settings_apply_on_resume(tmp_path, shapes_root):
    config = trained(tmp_path, shapes_root, train={"iterations": 1, "optimizer": "sgd"})
    first = load_checkpoint(tmp_path / "run/checkpoints/last.pt").optimizer
    changed = ["train.iterations=2", "train.weight_decay=0.01", "train.momentum=0.5"]
    assert train.main(["--config", str(config), "--resume", "auto", *changed]) == 0
    group = load_checkpoint(tmp_path / "run/checkpoints/last.pt").optimizer["param_groups"][0]
    assert (first["param_groups"][0]["weight_decay"], group["weight_decay"], group["momentum"]) == (5e-4, 0.01, 0.5)


@pytest.mark.parametrize(
    "change, note", [("train.optimizer=sgd", "of a different optimiser"), ("train.ema=0.9", "no moving average")]
)
def test_state_that_cannot_be_restored_is_reported(tmp_path, shapes_root, capsys, change, note):
    config = trained(tmp_path, shapes_root, train={"iterations": 1})
    assert train.main(["--config", str(config), "--resume", "auto", "train.iterations=2", change]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if note in line]) == 1
    assert at(tmp_path, "last") == 2


@pytest.mark.usefixtures("_report")
def test_the_map_survives_failing_pictures_and_reports(tmp_path, shapes_root, capsys):
    config = trained(tmp_path, shapes_root, train={"iterations": 1})
    figure = capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "file").write_text("")
    nowhere = f"output_dir={tmp_path / 'file/run'}"
    checkpoint = str(tmp_path / "run/checkpoints/best.pt")
    assert train.main(["--config", str(config), "--eval-only", "--resume", checkpoint, nowhere]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == figure
    assert [line.split(":")[0] for line in shown.err.splitlines()] == ["warning"] * 3


@pytest.mark.usefixtures("_report")
def test_a_photo_two_pixels_high_can_be_drawn(tmp_path, shapes_root, capsys):
    folder = tmp_path / "flat"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (3000, 2)).save(folder / "images/a.png")
    (folder / "labels/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (folder / "classes.txt").write_text("circle\n")
    config = small(tmp_path, shapes_root, train={"iterations": 1})
    val = "data.val=[{path: %s}]" % folder  # noqa: UP031
    assert train.main(["--config", str(config), val, f"data.train=[{{path: {folder}}}]", "data.classes=[circle]"]) == 0
    shown = capsys.readouterr()
    assert "warning: " not in shown.err
    assert shown.out.splitlines()[-1].startswith("mAP@0.5")


@pytest.mark.usefixtures("_report")
def test_a_thread_can_train(tmp_path, shapes_root):
    config = small(tmp_path, shapes_root, train={"iterations": 1})
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train.main, ["--config", str(config), "train.max_hours=1"]).result() == 0


@pytest.mark.usefixtures("_report")
def test_a_damaged_record_is_dropped_alone(tmp_path, shapes_root):
    config = trained(tmp_path, shapes_root, train={"iterations": 2})
    path = tmp_path / "run/metrics.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first[: len(first) // 2], b"\n", b"\xff\x00\n", b"[]\n", *others]))
    (tmp_path / "run/report.html").unlink()
    assert train.main(["--config", str(config), "--eval-only"]) == 0
    assert (tmp_path / "run/report.html").exists()
    assert train.main(["--config", str(config), "--resume", "auto"]) == 0
    assert [json.loads(line) for line in path.read_text().splitlines()] == [json.loads(line) for line in others]


def test_a_float32_run_resumed_in_float16_starts_with_the_default_scale(tmp_path, shapes_root):
    run = Run.alone(load_config(trained(tmp_path, shapes_root, train={"iterations": 1})))
    run.dtype = torch.float16
    state = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    parts = build_parts(run, load_data(run), *build_model(run, state), state)
    assert parts.step.updater.scaler.get_scale() == 2**16


def test_going_back_removes_everything_later(tmp_path, shapes_root, scores, capsys):
    config = small(tmp_path, shapes_root, train={"iterations": 4}, checkpoint={"every": 1, "keep": 10})
    folder = tmp_path / "run/checkpoints"
    scores += [0.3, 0.2, 0.6, 0.5]
    assert train.main(["--config", str(config)]) == 0
    assert at(tmp_path, "best") == 3
    scores += [0.2, 0.4, 0.35, 0.3]  # iteration 2 once more, since the best is chosen anew from there
    again = ["--config", str(config), "--overwrite", "train.iterations=5", "--resume"]
    assert train.main([*again, str(folder / numbered_name(2))]) == 0
    assert "going back from iteration 4: later checkpoints and records are removed" in capsys.readouterr().out
    # Not the first iteration 3, which was better.
    assert at(tmp_path, "best") == 3
    assert load_checkpoint(folder / "best.pt").best_map == 0.4
    assert [record["map"] for record in records(tmp_path, "eval")[:4]] == [0.3, 0.2, 0.4, 0.35]
    scores += [0.1]
    assert train.main([*again, str(folder / numbered_name(4))]) == 0
    assert "has no valid best.pt" not in capsys.readouterr().out  # iteration 3 still belongs to this run
    assert at(tmp_path, "best") == 3


def test_a_backup_is_resumed_if_everything_else_is_damaged(tmp_path, shapes_root):
    config = trained(tmp_path, shapes_root, train={"iterations": 2})
    folder = tmp_path / "run/checkpoints"
    shutil.copy(folder / "last.pt", tmp_path / "backup.pt")
    for path in folder.glob("*.pt"):
        path.write_bytes(b"damaged")
    assert train.main(["--config", str(config), "--resume", str(tmp_path / "backup.pt"), "train.iterations=3"]) == 0
    assert at(tmp_path, "last") == 3


def test_a_new_seed_splits_a_folder_differently_and_warns(tmp_path, shapes_root, scores, capsys):
    shutil.copytree(shapes_root / "shapes", tmp_path / "plain")
    shutil.rmtree(tmp_path / "plain/ImageSets")
    sources = {part: [{"path": "plain", "split": part, "val_fraction": 0.3}] for part in ("train", "val")}
    scores += [0.3, 0.6, 0.5, 0.4, 0.2]
    config = trained(tmp_path, shapes_root, data={"root": str(tmp_path), **sources})
    capsys.readouterr()
    assert train.main(["--config", str(config), "--resume", "auto", "seed=5", "train.iterations=5"]) == 0
    shown = capsys.readouterr().out
    assert "warning: the new seed splits the folder differently: some photos of data.val were trained on" in shown
    assert "seed changed: best.pt is chosen anew from this iteration on" in shown
    assert load_checkpoint(tmp_path / "run/checkpoints/best.pt").best_map == 0.4


def test_a_run_killed_right_after_going_back_resumes_from_there(tmp_path, shapes_root, scores, monkeypatch):
    config = small(tmp_path, shapes_root, train={"iterations": 4}, checkpoint={"every": 1, "keep": 10})
    folder = tmp_path / "run/checkpoints"
    scores += [0.3, 0.2, 0.6, 0.5]
    assert train.main(["--config", str(config)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", lambda *_: (_ for _ in ()).throw(Failure("killed")))
        assert train.main(["--config", str(config), "--resume", str(folder / numbered_name(2)), "--overwrite"]) == 1
    assert [path.name for path in sorted(folder.glob("iteration_*"))] == [numbered_name(1), numbered_name(2)]
    assert at(tmp_path, "last") == 2
    assert not (folder / "best.pt").exists()  # iteration 3 no longer belongs to this run
    scores += [0.2, 0.25, 0.1]
    assert train.main(["--config", str(config), "--resume", "auto"]) == 0
    assert at(tmp_path, "best") == 3


def test_a_run_on_tiles_resumes_within_an_epoch(tmp_path, shapes_root, capsys):
    """Photos and tiles both count as samples of an epoch, even after resuming."""
    changes: dict[str, dict] = {
        "data": {"tiles": {"size": 250, "background": 0.5}, "cache": "ram"}, "loss": {"min_neg": 3},
        "train": {"iterations": 4, "batch_size": 4}, "eval": {"every": 100}, "checkpoint": {"every": 2, "keep": 3},
    }  # fmt: skip
    whole, parts = (small(tmp_path / name, shapes_root, **changes) for name in ("whole", "parts"))
    assert train.main(["--config", str(whole)]) == 0
    shown = capsys.readouterr().out
    counts = re.search(r"tiles of 250 pixels: (\d+) to train on, (\d+) of them without objects; (\d+) to evaluate on", shown)
    assert all(int(count) > 0 for count in counts.groups())
    assert f"of 4 photos and tiles, {4 * 4 / (24 + int(counts[1])):.1f} epochs in total" in shown
    assert "\n8 photos in " in shown
    middle = tmp_path / "whole/run/checkpoints/iteration_00000002.pt"
    assert train.main(["--config", str(parts), "--resume", str(middle)]) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert records(tmp_path / "whole", "eval")[-1]["map"] == records(tmp_path / "parts", "eval")[-1]["map"]
