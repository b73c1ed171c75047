"""Checkpoints: which are written, found and kept; where a run begins, and what its folder may lose for it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ssd.preprocessing import IMAGENET
from ssd.system.distributed import World
from ssd.system.errors import UsageError, UserError
from ssd.training.checkpoints import (
    BEST,
    LAST,
    ResumePoint,
    find_same_state,
    make_folder,
    newest_checkpoint,
    numbered_name,
    remove_old,
)
from ssd.training.run import Run, find_start, first_state
from ssd.weights.checkpoint import CheckpointError, TrainState, copy_checkpoint, load_checkpoint, save_checkpoint, weights_alone
from tests.helpers.checkpoints import damage_empty, damage_one_byte, damage_truncate, state
from tests.helpers.runs import run_of


def test_the_newest_valid_checkpoint_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for iteration in (10, 20, 30):
        save_checkpoint(tmp_path / "last.pt", state(iteration))
        copy_checkpoint(tmp_path / "last.pt", tmp_path / numbered_name(iteration))
    save_checkpoint(tmp_path / "last.pt", state(35))
    assert newest_checkpoint(tmp_path).state.iteration == 35
    damage_truncate(tmp_path / "last.pt")
    damage_one_byte(tmp_path / numbered_name(30))
    found = newest_checkpoint(tmp_path)
    assert found.path.name == numbered_name(20)
    assert [Path(line.split(":")[0]).name for line in found.skipped] == ["last.pt", numbered_name(30)]
    save_checkpoint(tmp_path / "best.pt", state(25))
    assert newest_checkpoint(tmp_path).path.name == "best.pt"
    for path in tmp_path.iterdir():
        damage_empty(path)
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_outlives_its_source_and_old_ones_are_removed(tmp_path, monkeypatch, links):
    """Where the disk can link files, and where it cannot, as an exFAT one."""
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    for iteration in (10, 20, 30, 40):
        save_checkpoint(tmp_path / "last.pt", state(iteration))
        copy_checkpoint(tmp_path / "last.pt", tmp_path / numbered_name(iteration))
        remove_old(tmp_path, 2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [numbered_name(30), numbered_name(40), "last.pt"]
    assert load_checkpoint(tmp_path / numbered_name(30)).iteration == 30


EVALUATED = '{"kind": "eval", "epoch": 1, "iteration": %d, "map": 0.5}\n'


def of_run(run_id: str, iteration: int, **changes: Any) -> TrainState:
    return replace(state(iteration), run_id=run_id, config={"model": {}}, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run `one` of 4 iterations, whose best one is the third."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run_id").write_text("one\n")
    (folder / "metrics.jsonl").write_text(EVALUATED % 4)
    for name, iteration in ((numbered_name(2), 2), (BEST, 3), (numbered_name(4), 4), (LAST, 4)):
        save_checkpoint(folder / "checkpoints" / name, of_run("one", iteration))
    return folder


def in_folder(folder: Path) -> Run:
    return run_of(output_dir=str(folder))


def start(folder: Path, resume: str | None, overwrite: bool = False) -> TrainState | None:
    """Begins as train.py does, with nothing in between; the state that was found."""
    run = in_folder(folder)
    found = find_start(run, resume, overwrite)
    if found.state:
        make_folder(run.world, folder, found.state, found)
    return found.state


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another(path: Path) -> Path:
    save_checkpoint(path, of_run("two", 9))
    return path


def alone(path: Path) -> Path:
    save_checkpoint(path, weights_alone(of_run("one", 4)))
    return path


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        (lambda folder: folder / "checkpoints" / numbered_name(2), "at iteration 2, but the run in .* has reached iteration 4"),
        (lambda folder: folder / "checkpoints" / BEST, "at iteration 3, but"),
        (lambda folder: shutil.copy(folder / "checkpoints" / BEST, folder.parent / "backup.pt"), "at iteration 3, but"),
        (lambda folder: another(folder.parent / "other.pt"), "belongs to a different run than"),
        (lambda folder: another(folder / "checkpoints/other.pt"), "belongs to a different run than"),
        (lambda folder: another(folder / "checkpoints" / LAST), "belongs to a different run than"),
        (lambda folder: alone(folder.parent / "weights.pt"), "contains weights only.*model.init_from="),
        (lambda folder: alone(folder / "checkpoints/weights.pt"), "contains weights only.*model.init_from="),
    ],
    ids=["earlier", "best", "backup", "of another run", "copied beside", "copied over the last", "weights", "weights beside"],
)
def test_nothing_is_lost_without_overwrite(folder: Path, checkpoint: Callable[[Path], Path], said: str) -> None:
    path = checkpoint(folder)
    before = files(folder)
    with pytest.raises(UserError, match=said):
        start(folder, str(path))
    assert files(folder) == before
    if "weights" in said:
        with pytest.raises(CheckpointError, match=said):
            start(folder, str(path), overwrite=True)
        assert files(folder) == before
        return
    given = start(folder, str(path), overwrite=True)
    assert load_checkpoint(folder / "checkpoints" / LAST).iteration == given.iteration  # safe, whatever was removed
    assert not (folder / "checkpoints" / numbered_name(4)).exists()


def test_damaged_later_checkpoints_still_protect_a_run(folder):
    save_checkpoint(folder.parent / "backup.pt", of_run("one", 3))
    for path in (folder / "checkpoints").iterdir():
        damage_truncate(path)
    with pytest.raises(UsageError, match="has reached iteration 4"):
        start(folder, str(folder.parent / "backup.pt"))


@pytest.mark.parametrize("left", ["checkpoints/backup.pt", "report.html", "metrics.jsonl", "detections.png"])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_results_without_checkpoints_are_protected(folder, left, resume):
    content = (folder / left).read_bytes() if (folder / left).exists() else b"mine"
    shutil.rmtree(folder)
    (folder / left).parent.mkdir(parents=True)
    (folder / left).write_bytes(content)
    with pytest.raises(UsageError, match=r"contains .* choose another output_dir, or start again with --overwrite"):
        find_start(in_folder(folder), resume, False)
    assert find_start(in_folder(folder), resume, True) == ResumePoint(None, clear=True)


def test_a_run_that_saved_nothing_starts_again(folder):
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").write_text('{"kind": "train", "epoch": 1, "iteration": 2, "loss": 1}\n')
    for resume in (None, "auto"):
        assert find_start(in_folder(folder), resume, False) == ResumePoint(None, clear=True)


def test_the_newest_valid_checkpoint_may_be_best_pt(folder, capsys):
    for name in (LAST, numbered_name(4)):
        damage_truncate(folder / "checkpoints" / name)
    assert start(folder, "auto").iteration == 3
    assert capsys.readouterr().out.splitlines()[-1] == f"resuming from {folder}/checkpoints/best.pt, iteration 3"
    save_checkpoint(folder / "checkpoints" / LAST, of_run("one", 1))  # an old one, brought back
    assert find_start(in_folder(folder), "auto", False).state.iteration == 3


def test_resuming_a_folder_reports_skipped_checkpoints_and_expands_home(folder, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    damage_truncate(folder / "checkpoints" / LAST)
    assert start(folder, f"~/{folder.name}").iteration == 4
    assert f"skipped: {folder / 'checkpoints' / LAST}" in capsys.readouterr().out


def test_the_best_checkpoint_by_another_metric_is_kept(folder):
    before = (folder / "checkpoints" / BEST).read_bytes()
    found = ResumePoint(of_run("one", 4, best_map=0.7))
    make_folder(World(), folder, of_run("one", 4), found)  # chosen again: no best figure is known
    assert (folder / "checkpoints/best_until_00000004.pt").read_bytes() == before
    assert not (folder / "checkpoints" / BEST).exists()


@dataclass(frozen=True)
class Two(World):
    """Two processes: the other one has the same values as this one, or those in `theirs`, by type."""

    size: int = 2
    theirs: dict[type, Any] = field(default_factory=dict)

    def all_gather(self, value: Any, patient: bool = False) -> list[Any]:
        return [value, self.theirs.get(type(value), value)]


def test_processes_with_different_states_are_refused():
    one = ResumePoint(of_run("one", 4))
    lacking = Two(theirs={tuple: ("no checkpoint", ""), str: "no checkpoint"})
    assert find_same_state(Two(), lambda: one) is one
    with pytest.raises(UsageError, match=r"process 0 has iteration 4 of run one \(\w{8}\), process 1 has no checkpoint; give"):
        find_same_state(lacking, lambda: one)
    with pytest.raises(UsageError, match=r"process 0 has runs/a: holds a run, process 1 has no checkpoint; give all"):
        find_same_state(lacking, lambda: refuse("runs/a: holds a run"))
    with pytest.raises(UsageError, match=r"^runs/a: holds a run$"):  # each in a folder of its own
        find_same_state(Two(theirs={tuple: ("runs/b: holds a run",) * 2}), lambda: refuse("runs/a: holds a run"))


def refuse(text: str) -> ResumePoint:
    raise UsageError(text)


@pytest.fixture
def resumed(tmp_path):
    """A run, and a state of it whose best figure is in its folder."""
    run = run_of(output_dir=str(tmp_path), eval={"metric": "voc10"})
    config = run.config.model_dump(mode="json")
    state = TrainState({}, ["cat", "dog"], {}, config, iteration=5, best_map=0.4, not_improved=2, run_id="of this run")
    (tmp_path / "run_id").write_text("of this run\n")
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path / "checkpoints/best.pt", TrainState({}, ["cat", "dog"], {}, config, iteration=3))
    return run, state


def begun(run: Run, state: TrainState, **found: bool) -> TrainState:
    return first_state(run, IMAGENET, ResumePoint(state, **found))


def test_each_run_gets_its_own_id():
    one, other = (first_state(run_of(), IMAGENET, ResumePoint(None)) for _ in range(2))
    assert len(one.run_id) == len(other.run_id) >= 16
    assert one.run_id != other.run_id
    assert (one.classes, one.num_processes, one.iteration, one.best_map) == (["cat", "dog"], 1, 0, -1)


def test_the_best_map_of_the_same_run_is_kept(resumed, capsys):
    run, state = resumed
    first = begun(run, state)
    assert (first.run_id, first.num_processes, first.best_map, first.not_improved) == ("of this run", 1, 0.4, 2)
    assert begun(run, state, goes_back=True).best_map == 0.4  # it is of an earlier iteration
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("case", ["other metric", "cleared", "none", "damaged", "later"])
def test_an_incomparable_best_map_or_one_without_checkpoint_is_dropped(resumed, case, tmp_path, capsys):
    run, state = resumed
    best = tmp_path / "checkpoints/best.pt"
    if case == "other metric":
        state.config["eval"]["metric"] = "voc07"
    elif case == "none":
        best.unlink()
    elif case == "damaged":
        best.write_bytes(b"damaged")
    elif case == "later":
        state.iteration = 2
    first = begun(run, state, clear=case == "cleared", goes_back=case == "later")
    assert (first.best_map, first.not_improved) == (-1, 0)
    said = "eval.metric changed" if case == "other metric" else "has no valid best.pt of this run"
    assert f"{said}: best.pt is chosen anew" in capsys.readouterr().out


def test_a_state_that_starts_another_run_gets_a_new_id(resumed):
    run, state = resumed
    assert len(begun(run, state, clear=True).run_id) >= 16
    state.run_id = ""  # of before runs had one
    assert len(begun(run, state).run_id) >= 16
