"""Where a run begins, and what its folder may lose for it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssd.system.distributed import World
from ssd.system.errors import UsageError, UserError
from ssd.training.checkpoints import BEST, LAST, ResumePoint, find_same_state, find_state, make_folder, numbered_name
from ssd.weights.checkpoint import CheckpointError, TrainState, load_checkpoint, save_checkpoint, weights_alone
from tests.ssd.weights.test_checkpoint import damage_truncate, state

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


def start(folder: Path, resume: str | None, overwrite: bool = False) -> TrainState | None:
    """Begins as train.py does, with nothing in between; the state that was found."""
    found = find_state(folder, resume, overwrite, print)
    if found.state:
        make_folder(folder, found.state, found, World())
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
        (
            lambda folder: folder / "checkpoints" / numbered_name(2),
            "of iteration 2, and the run in .* has reached iteration 4",
        ),
        (lambda folder: folder / "checkpoints" / BEST, "of iteration 3, and"),
        (
            lambda folder: shutil.copy(folder / "checkpoints" / BEST, folder.parent / "backup.pt"),
            "of iteration 3, and",
        ),
        (lambda folder: another(folder.parent / "other.pt"), "is of another run than the one in"),
        (lambda folder: another(folder / "checkpoints/other.pt"), "is of another run than the one in"),
        (lambda folder: another(folder / "checkpoints" / LAST), "is of another run than the one in"),
        (lambda folder: alone(folder.parent / "weights.pt"), "holds weights alone.*model.init_from="),
        (lambda folder: alone(folder / "checkpoints/weights.pt"), "holds weights alone.*model.init_from="),
    ],
    ids=["earlier", "best", "backup", "of another run", "copied beside", "copied over the last", "weights", "weights beside"],
)
def test_nothing_is_lost_that_was_not_given_up(folder: Path, checkpoint: Callable[[Path], Path], said: str) -> None:
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
    assert given is not None
    assert load_checkpoint(folder / "checkpoints" / LAST).iteration == given.iteration  # safe, whatever was removed
    assert not (folder / "checkpoints" / numbered_name(4)).exists()


def test_what_came_after_a_backup_is_not_lost_where_its_checkpoints_are_damaged(folder):
    save_checkpoint(folder.parent / "backup.pt", of_run("one", 3))
    for path in (folder / "checkpoints").iterdir():
        damage_truncate(path)
    with pytest.raises(UsageError, match="has reached iteration 4"):
        start(folder, str(folder.parent / "backup.pt"))


@pytest.mark.parametrize("left", ["checkpoints/backup.pt", "report.html", "metrics.jsonl", "detections.png"])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_what_is_left_of_a_run_without_its_checkpoints_is_kept(folder, left, resume):
    content = (folder / left).read_bytes() if (folder / left).exists() else b"mine"
    shutil.rmtree(folder)
    (folder / left).parent.mkdir(parents=True)
    (folder / left).write_bytes(content)
    with pytest.raises(UsageError, match=r"holds .* choose another output_dir, or start again with --overwrite"):
        find_state(folder, resume, False, print)
    assert find_state(folder, resume, True, print) == ResumePoint(None, clear=True)


def test_a_run_that_ended_before_it_saved_anything_starts_again(folder):
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").write_text('{"kind": "train", "epoch": 1, "iteration": 2, "loss": 1}\n')
    for resume in (None, "auto"):
        assert find_state(folder, resume, False, print) == ResumePoint(None, clear=True)


def test_the_newest_whole_checkpoint_may_be_the_best_one(folder, capsys):
    for name in (LAST, numbered_name(4)):
        damage_truncate(folder / "checkpoints" / name)
    found = start(folder, "auto")
    assert found is not None
    assert found.iteration == 3
    assert capsys.readouterr().out.splitlines()[-1] == f"resuming from {folder}/checkpoints/best.pt, iteration 3"
    save_checkpoint(folder / "checkpoints" / LAST, of_run("one", 1))  # an old one, brought back
    assert find_state(folder, "auto", False, print).state.iteration == 3


def test_a_folder_to_resume_from_tells_what_was_skipped_and_may_begin_with_home(folder, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    damage_truncate(folder / "checkpoints" / LAST)
    found = start(folder, f"~/{folder.name}")
    assert found
    assert found.iteration == 4
    assert f"skipped: {folder / 'checkpoints' / LAST}" in capsys.readouterr().out


def test_a_best_checkpoint_by_another_measure_is_kept(folder):
    before = (folder / "checkpoints" / BEST).read_bytes()
    found = ResumePoint(of_run("one", 4, best_map=0.7))
    make_folder(folder, of_run("one", 4), found, World())  # chosen again: no best figure is known
    assert (folder / "checkpoints/best_until_00000004.pt").read_bytes() == before
    assert not (folder / "checkpoints" / BEST).exists()


class Two(World):
    """Two processes, of which the other one has the same as this one, or what is given for values of a type."""

    theirs: Any = {}  # noqa: RUF012

    def all_gather(self, value: Any, patient: bool = False) -> list[Any]:
        return [value, self.theirs.get(type(value), value)]


class Lacking(Two):
    theirs: Any = {tuple: ("no checkpoint", ""), str: "no checkpoint"}  # noqa: RUF012


class Refused(Two):
    theirs: Any = {tuple: ("runs/b: holds a run",) * 2}  # noqa: RUF012


def test_processes_that_begin_with_different_states_are_refused():
    one = ResumePoint(of_run("one", 4))
    assert find_same_state(Two(size=2), lambda: one, lambda found: found.state) is one
    with pytest.raises(UsageError, match=r"process 0 has iteration 4 of run one \(\w{8}\), process 1 has no checkpoint; give"):
        find_same_state(Lacking(size=2), lambda: one, lambda found: found.state)
    with pytest.raises(UsageError, match=r"process 0 has runs/a: holds a run, process 1 has no checkpoint; give all"):
        find_same_state(Lacking(size=2), lambda: refuse("runs/a: holds a run"), lambda _: None)
    with pytest.raises(UsageError, match=r"^runs/a: holds a run$"):  # each in a folder of its own
        find_same_state(Refused(size=2), lambda: refuse("runs/a: holds a run"), lambda _: None)


def refuse(text: str) -> ResumePoint:
    raise UsageError(text)
