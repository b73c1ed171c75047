"""Variance: several runs in one command, compared with single runs."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml

import train
from ssd.batch import Batch
from ssd.diagnostics.variance import Spread
from ssd.training.trainer import Trainer
from ssd.training.validate import Best
from ssd.weights.checkpoint import load_checkpoint
from tests.helpers.paths import ROOT
from tests.helpers.processes import completed
from tests.helpers.runs import TWO_PROCESSES, assert_same_weights, command, small


def test_the_spread_is_that_of_a_sample():
    assert Spread.of([0.5, 0.7, 0.9]) == pytest.approx((0.7, 0.2, 0.5, 0.9))
    assert Spread.of([0.5, None]) == pytest.approx((0.5, np.nan, 0.5, 0.5), nan_ok=True)
    assert Spread.of([0.5, None]).row() == "0.5000       –  0.5000  0.5000"
    assert Spread.of([None]).to_plain() == dict.fromkeys(("mean", "std", "min", "max"))


def written(folder: Path) -> dict:
    return json.loads((folder / "run/variance.json").read_text())


def weights(folder: Path) -> tuple[int, dict]:
    state = load_checkpoint(folder / "checkpoints/last.pt")
    return state.iteration, state.model


@pytest.mark.slow
@pytest.mark.usefixtures("restored_signals", "no_report")
def test_each_seed_is_the_run_with_that_seed(tmp_path, shapes_root, capsys):
    config = small(tmp_path, shapes_root)
    words = ["--config", str(config), "seed=4", "--seeds", "2"]
    assert train.main(["--config", str(config), "seed=5", f"output_dir={tmp_path / 'alone/run'}"]) == 0
    assert train.main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    for name in ("seed_4", "seed_5"):
        (tmp_path / name).mkdir()
        shutil.copytree(tmp_path / "run" / name, tmp_path / name / "run")
    assert_same_weights(tmp_path / "seed_5", tmp_path / "alone")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "seed_4", tmp_path / "alone")
    assert yaml.safe_load((tmp_path / "run/seed_5/config.yaml").read_text())["output_dir"] == str(tmp_path / "run/seed_5")

    table, maps = written(tmp_path), []
    for each, seed in zip(table["runs"], (4, 5), strict=True):
        records = map(json.loads, (tmp_path / f"run/seed_{seed}/metrics.jsonl").read_text().splitlines())
        evaluations = {record["iteration"]: record for record in records if record["kind"] == "eval"}
        assert each["folder"] == f"seed_{seed}"
        assert (each["map"], each["ap"]) == (evaluations[each["iteration"]]["map"], evaluations[each["iteration"]]["ap"])
        maps.append(each["map"])
    assert table["map"] == pytest.approx(
        {"mean": np.mean(maps), "std": np.std(maps, ddof=1), "min": min(maps), "max": max(maps)}
    )
    assert shown[-1] == f"mAP@0.5 (VOC07 11-point) {np.mean(maps):.4f}"
    assert re.fullmatch(r"mAP( +\d\.\d{4}){4}", shown[-5])
    assert f"run/seed_{4 + int(np.argmax(maps))}/checkpoints/best.pt" in shown[-3]

    # Finished runs are not repeated; one more seed is added.
    before = [weights(tmp_path / f"run/seed_{seed}") for seed in (4, 5)]
    assert train.main([*words[:-1], "3", "--resume", "auto"]) == 0
    assert capsys.readouterr().out.count("nothing left to train") == 2
    assert [each["folder"] for each in written(tmp_path)["runs"]] == ["seed_4", "seed_5", "seed_6"]
    assert written(tmp_path)["runs"][:2] == table["runs"]
    assert [weights(tmp_path / f"run/seed_{seed}")[0] for seed in (4, 5)] == [iteration for iteration, _ in before]
    table = written(tmp_path)
    assert train.main([*words[:-1], "3", "--eval-only"]) == 0
    assert written(tmp_path) == table
    assert train.main(words) == 2
    assert "seed_4: contains a run; resume it with --resume auto" in capsys.readouterr().err
    assert train.main([*words, "--dry-run", "--overwrite"]) == 0
    assert "\n2 such runs will take about " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("restored_signals", "no_report")
def test_interrupted_folds_resume_where_they_stopped(tmp_path, shapes_root, monkeypatch, capsys):
    whole, parts = (small(tmp_path / name, shapes_root) for name in ("whole", "parts"))
    assert train.main(["--config", str(whole), "--folds", "3"]) == 0
    assert "data.train: fold 3 of 3: 8 photos to evaluate on; data.val is not used" in capsys.readouterr().out
    began, fit = [], Trainer.fit

    def stopped_in_the_second_run(trainer: Trainer, batches: Iterable[Batch]) -> Best | None:
        began.append(trainer)
        if len(began) == 2:
            signal.raise_signal(signal.SIGTERM)
        return fit(trainer, batches)

    monkeypatch.setattr(Trainer, "fit", stopped_in_the_second_run)
    assert train.main(["--config", str(parts), "--folds", "3"]) == 143
    assert "resume with --resume auto" in capsys.readouterr().out
    assert not (tmp_path / "parts/run/fold_3_of_3").exists()
    assert len(written(tmp_path / "parts")["runs"]) == 1
    assert train.main(["--config", str(parts), "--folds", "3", "--resume", "auto"]) == 0
    assert capsys.readouterr().out.count("nothing left to train") == 1
    assert written(tmp_path / "parts") == written(tmp_path / "whole")


def test_a_run_in_a_later_folder_is_found_before_the_first_run_begins(tmp_path, shapes_root, monkeypatch, capsys):
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("a run began"))
    kept = tmp_path / "run/seed_5/checkpoints/best.pt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert train.main(["--config", str(small(tmp_path, shapes_root)), "seed=4", "--seeds", "3"]) == 2
    assert "seed_5: contains a run; resume it with --resume auto" in capsys.readouterr().err
    assert not (tmp_path / "run/seed_4").exists()


@pytest.mark.slow
def test_two_processes_train_on_the_same_folds(tmp_path, shapes_root):
    config = small(tmp_path, shapes_root)
    words = [*TWO_PROCESSES, *command(config, "--folds", "2")[1:]]
    done = completed(words, timeout=300, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean of 2 runs:") == 1
    assert [each["folder"] for each in written(tmp_path)["runs"]] == ["fold_1_of_2", "fold_2_of_2"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seeds", "2", "--folds", "2"], "not allowed with argument"),
        (["--folds", "1"], "expected an integer ≥ 2, got '1'"),
        (["--seeds", "2", "--resume", "runs/other"], "give --resume auto with --seeds and --folds"),
    ],
)
def test_options_that_contradict_each_other(tmp_path, shapes_root, words, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--config", str(small(tmp_path, shapes_root)), *words])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err
