"""scripts/slim.py: checkpoints and shipped weights made narrower, and what it refuses."""

import pytest
import torch

from scripts import slim
from ssd.weights.checkpoint import load_checkpoint
from ssd.weights.pretrained import network_of
from ssd.weights.sources import SHIPPED
from tests.helpers.paths import ROOT

PHOTOS = str(ROOT / "tests/photos")


def test_shipped_weights_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert slim.main(["slim", "--width", "0.1", "--photos", PHOTOS, "--number", "3"]) == 0
    shown = capsys.readouterr().out
    assert "conv1_1       8 of   16 channels  unexplained variance 0.0" in shown
    assert "width 0.25: 2,2" in shown
    assert "written: slim.width0.1.pt, " in shown
    whole, narrow = (load_checkpoint(path) for path in (SHIPPED["slim"], tmp_path / "slim.width0.1.pt"))
    assert (narrow.classes, narrow.config["model"]["width"]) == (whole.classes, 0.1)
    images = torch.rand(1, 3, 300, 300) * 255 - 120
    with torch.no_grad():
        for ours, theirs in zip(network_of(narrow)(images), network_of(whole)(images), strict=True):
            assert ours.shape == theirs.shape
            assert ours.isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["slim", "--width", "0.3", "--photos", PHOTOS], "--width 0.3: the checkpoint has width 0.25; name a smaller one"),
        (["slim", "--width", "0.1"], "slim.pt: contains only weights and names no photos; name a folder with --photos"),
        (["slim", "--width", "0.1", "--photos", "none"], "--photos none: no such folder"),
        (["missing.pt", "--width", "0.1", "--photos", PHOTOS], "missing.pt: no such checkpoint"),
    ],
)
def test_what_it_refuses(tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert slim.main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []
