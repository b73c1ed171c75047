"""Where files can be written, before any work is done."""

from pathlib import Path

import pytest

import train
from scripts import new_config
from ssd.config.file import parse_config
from ssd.system.errors import UsageError
from ssd.system.files import require_writable


def test_a_folder_that_is_there_or_can_be_made_will_do(tmp_path):
    for folder in (tmp_path, tmp_path / "a/b", Path("a")):
        require_writable(folder, "output_dir")
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_written_is_told_by_its_entry_with_exit_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "config.yaml").write_text("data: {train: [{path: a}], val: [{path: b}]}")
    for folder in (tmp_path / "file", tmp_path / "file/below", Path("/proc/none/below")):
        with pytest.raises(UsageError, match=f"^--output: {folder}: is not writable"):
            require_writable(folder, "--output")
    run = ["--config", str(tmp_path / "config.yaml"), f"output_dir={tmp_path / 'file'}"]
    for words in (run, [*run, "--dry-run"]):
        assert train.main(words) == 2
        assert capsys.readouterr().err.startswith(f"error: output_dir: {tmp_path / 'file'}: is not writable")
    assert new_config.main([str(tmp_path), "--output", str(tmp_path / "file/a.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --output: {tmp_path / 'file'}: is not writable")


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    sources = [{"path": "~/photos"}]
    config = parse_config(
        {"output_dir": "~/runs/a", "data": {"root": "~", "train": sources, "val": sources}},
        overrides=["model.init_from=~/b.pt"],
    )
    assert (config.output_dir, config.data.root) == ("/home/someone/runs/a", "/home/someone")
    assert (config.data.val[0].path, config.model.init_from) == ("/home/someone/photos", "/home/someone/b.pt")


def test_a_second_process_need_not_write(tmp_path, monkeypatch, capsys):
    """Its machine may have the folder to read from alone."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "config.yaml").write_text("data: {root: /none, train: [{path: a}], val: [{path: b}]}")
    monkeypatch.setenv("RANK", "1")
    assert train.main(["--config", str(tmp_path / "config.yaml"), f"output_dir={tmp_path / 'file'}", "device=cpu"]) == 2
    assert "cannot be written" not in capsys.readouterr().err
