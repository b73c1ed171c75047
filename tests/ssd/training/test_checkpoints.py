import os
from pathlib import Path

import pytest

from ssd.training.checkpoints import find_checkpoint, keep_last, numbered_name
from ssd.weights.checkpoint import CheckpointError, copy_checkpoint, load_checkpoint, save_checkpoint
from tests.ssd.weights.test_checkpoint import damage_empty, damage_one_byte, damage_truncate, state


def test_the_newest_whole_one_is_found(tmp_path):
    assert find_checkpoint(tmp_path) is None
    for iteration in (10, 20, 30):
        save_checkpoint(tmp_path / "last.pt", state(iteration))
        copy_checkpoint(tmp_path / "last.pt", tmp_path / numbered_name(iteration))
    save_checkpoint(tmp_path / "last.pt", state(35))
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found[1].iteration == 35
    damage_truncate(tmp_path / "last.pt")
    damage_one_byte(tmp_path / numbered_name(30))
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found[0].name == numbered_name(20)
    assert [Path(line.split(":")[0]).name for line in found[2]] == ["last.pt", numbered_name(30)]
    save_checkpoint(tmp_path / "best.pt", state(25))
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found[0].name == "best.pt"
    for path in tmp_path.iterdir():
        damage_empty(path)
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_outlives_its_source_and_old_ones_go(tmp_path, monkeypatch, links):
    """Where the disk can link files, and where it cannot, as an exFAT one."""
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    for iteration in (10, 20, 30, 40):
        save_checkpoint(tmp_path / "last.pt", state(iteration))
        copy_checkpoint(tmp_path / "last.pt", tmp_path / numbered_name(iteration))
        keep_last(tmp_path, 2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [numbered_name(30), numbered_name(40), "last.pt"]
    assert load_checkpoint(tmp_path / numbered_name(30)).iteration == 30
