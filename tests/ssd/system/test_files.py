"""Checks before any work whether files can be written."""

from pathlib import Path

import pytest

import train
from scripts import new_config
from ssd.config.file import parse_config
from ssd.system.errors import UsageError
from ssd.system.files import require_writable


def test_existing_and_new_folders_are_writable(tmp_path):
    for folder in (tmp_path, tmp_path / "a/b", Path("a")):
        require_writable(folder, "output_dir")
    assert not any(tmp_path.iterdir())


def test_unwritable_folder_is_reported_with_its_entry(tmp_path, capsys):
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


def test_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    sources = [{"path": "~/photos"}]
    given = {"output_dir": "~/runs/a", "data": {"root": "~", "train": sources, "val": sources}}
    config = parse_config(given, overrides=["model.init_from=~/b.pt"])
    assert (config.output_dir, config.data.root) == ("/home/someone/runs/a", "/home/someone")
    assert (config.data.val[0].path, config.model.init_from) == ("/home/someone/photos", "/home/someone/b.pt")


def test_only_the_main_process_needs_a_writable_folder(tmp_path, monkeypatch, capsys):
    """On its machine the folder may be read-only."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "config.yaml").write_text("data: {root: /none, train: [{path: a}], val: [{path: b}]}")
    monkeypatch.setenv("RANK", "1")
    assert train.main(["--config", str(tmp_path / "config.yaml"), f"output_dir={tmp_path / 'file'}", "device=cpu"]) == 2
    assert "cannot be written" not in capsys.readouterr().err
