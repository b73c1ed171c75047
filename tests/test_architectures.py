"""Each row of the table of architectures through a whole run: train, stop, resume, evaluate, export, detect."""

import json
import signal

import numpy as np
import pytest
import torch
from torch import nn

import train
from scripts import detect, export
from ssd.architecture import ARCHITECTURES
from ssd.model import SSD
from ssd.preprocessing import IMAGENET, normalize, resize
from ssd.system.images import read_photo
from ssd.training import validate
from ssd.training.run_log import RunLog
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from ssd.weights.pretrained import network_of
from tests.helpers.networks import narrow
from tests.helpers.runs import assert_same_weights, small

pytestmark = pytest.mark.slow
SIZE = {"train": {"iterations": 3, "batch_size": 4, "accumulate": 2, "ema": 0.9}, "checkpoint": {"every": 1, "keep": 5}}


def spread_scores(model: SSD, images: torch.Tensor) -> None:
    """Calibrate the norms and give the class scores a deviation of 1, so that rounding does not decide which boxes remain."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1  # use a batch's statistics unchanged
    with torch.no_grad():
        model.train()(images)
        model.eval()
        for head in model.conf:
            outputs: list[torch.Tensor] = []
            with head.register_forward_hook(lambda *given, outputs=outputs: outputs.append(given[-1])):
                model(images)
            last = [module for module in head.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)][-1]
            last.weight /= outputs[0].std()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_whole_run(name, tmp_path, shapes_root, monkeypatch, capsys):
    monkeypatch.setattr(validate, "write_report", lambda *_: None)  # takes longer than training
    row = ARCHITECTURES[name]
    width = narrow(row, 0.1)
    model = {"architecture": name, "pretrained": "none", "batch_norm": row.batch_norms[-1], "width": width, "freeze": None}
    whole, halves = (
        small(tmp_path / part, shapes_root, **SIZE, model=model, data={"cache": "ram"}) for part in ("whole", "halves")
    )
    arguments = ["eval.every=3"]
    assert train.main(["--config", str(whole), *arguments]) == 0
    assert f"model: {row.title}, " in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", lambda _: signal.raise_signal(signal.SIGINT))
        assert train.main(["--config", str(halves), *arguments]) == 130
    last = tmp_path / "halves/run/checkpoints/last.pt"
    assert load_checkpoint(last).iteration == 1
    assert train.main(["--config", str(halves), "--resume", "auto", *arguments]) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "halves")
    best = tmp_path / "whole/run/checkpoints/best.pt"
    assert train.main(["--config", str(whole), "--eval-only", *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("mAP@0.5 (VOC07 11-point) ")

    state = load_checkpoint(best)
    network, photos = network_of(state), shapes_root / "shapes/JPEGImages"
    pixels = [resize(read_photo(path), row.input_size, row.input_size) for path in sorted(photos.iterdir())[:8]]
    spread_scores(network, normalize(torch.from_numpy(np.stack(pixels)), IMAGENET))
    state.average = network.state_dict()
    save_checkpoint(best, state)
    assert export.main([str(best), "--output", str(tmp_path / "a.onnx"), "--photos", str(photos), "--score", "0.5"]) == 0
    assert "checked on 16 photos with" in capsys.readouterr().out  # the file's detections are those of the checkpoint
    output = ["--output", str(tmp_path / "found"), "--formats", "json", "--score", "0.5", "--device", "cpu"]
    assert detect.main([str(best), str(photos), *output]) == 0
    found = json.loads((tmp_path / "found/detections.json").read_text())
    assert len(found) == 32
    assert sum(len(entry["objects"]) for entry in found) > 10
